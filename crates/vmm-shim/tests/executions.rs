//! Commands that clients run in a box, over its control socket.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::signal::Signal;
use support::client::Client;
use support::{LOOP, Shim, eventually, sh};
use vmm_protocol::ControlGroup;
use vmm_protocol::frames::{
    ExecSpec, Frame, HostMessage, INITIAL_CREDIT, PayloadMessage, RequestError, RequestErrorKind,
};
use vmm_shim::{Ending, FILES};

#[test]
fn a_command_runs_beside_the_payload_with_its_environment_and_limits() {
    let mut payload = sh(LOOP);
    payload.env.insert("COLOR".into(), "blue".into());
    payload.working_dir = Some("/usr".into());
    let mut shim = Shim::start(payload);
    shim.report();
    let mut client = Client::connect(&shim);
    client.exec(
        1,
        "exec-1",
        "echo $COLOR $PWD $VMM_BOX_ID; ulimit -n; exit 42",
    );
    let (output, _, ending) = client.finish(1);
    assert_eq!(output, "blue /usr b1\n1024\n");
    assert_eq!(ending, Ending::Exited { code: 42 });
    let mode = fs::metadata(shim.path(FILES.control))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn several_clients_run_commands_and_list_all_of_them() {
    let shim = Shim::start_loop("");
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(&shim)).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.exec(1, &format!("exec-{i}"), "cat; exit 5");
    }
    for client in &mut clients {
        client.send(1, HostMessage::Stdin(b"hello".to_vec()));
        client.send(1, HostMessage::CloseStdin);
        let (output, _, ending) = client.finish(1);
        assert_eq!(
            (output.as_str(), ending),
            ("hello", Ending::Exited { code: 5 })
        );
    }
    for execution in clients[0].list() {
        assert_eq!(execution.ending, Some(Ending::Exited { code: 5 }));
    }
    assert_eq!(clients[0].list().len(), 3);
}

#[test]
fn an_execution_goes_on_without_its_client_and_keeps_its_last_output() {
    let shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    client.exec(
        1,
        "exec-1",
        "read line; until rm $VMM_BOX_DIR/go 2>&-; do sleep 0.01; done
         seq 100000; echo got $line; exit 3",
    );
    // The shim has the execution before its client is gone.
    assert_eq!(client.list().len(), 1);
    drop(client);
    let mut client = Client::connect(&shim);
    client.send(
        7,
        HostMessage::Attach {
            id: "exec-1".into(),
            output: true,
        },
    );
    client.send(7, HostMessage::Stdin(b"it\n".to_vec()));
    assert!(client.list()[0].ending.is_none());
    drop(client);
    let mut client = Client::connect(&shim);
    // The shim has noticed that the client before is gone: that would get output.
    assert_eq!(client.list().len(), 1);
    fs::write(shim.path("go"), "").unwrap();
    eventually("the execution ends", || client.list()[0].ending.is_some());
    client.send(
        9,
        HostMessage::Attach {
            id: "exec-1".into(),
            output: true,
        },
    );
    let (output, dropped, ending) = client.finish(9);
    assert_eq!(ending, Ending::Exited { code: 3 });
    assert!(output.ends_with("99999\n100000\ngot it\n"), "{output}");
    assert_eq!(dropped + output.len() as u64, 588_895 + 7);
    // Again, now without output.
    client.send(
        9,
        HostMessage::Attach {
            id: "exec-1".into(),
            output: true,
        },
    );
    assert_eq!(
        client.finish(9),
        (String::new(), 0, Ending::Exited { code: 3 })
    );
}

#[test]
fn a_client_that_does_not_read_stops_its_own_command_only() {
    let shim = Shim::start_loop("");
    let mut slow = Client::connect(&shim);
    slow.exec(1, "exec-1", "yes");
    let mut received = 0;
    while received < INITIAL_CREDIT as usize {
        if let PayloadMessage::Stdout(data) = slow.receive().message {
            received += data.len();
        }
    }
    let mut other = Client::connect(&shim);
    other.exec(1, "exec-2", "echo hello");
    assert_eq!(other.finish(1).0, "hello\n");
    slow.send(0, HostMessage::Ping { token: 1 });
    let next = slow.receive();
    assert_eq!(next, Frame::new(0, PayloadMessage::Pong { token: 1 }));
    slow.send(1, HostMessage::Credit { bytes: 4 });
    let next = slow.receive();
    assert_eq!(
        next,
        Frame::new(1, PayloadMessage::Stdout(b"y\ny\n".to_vec()))
    );
}

#[test]
fn the_end_of_a_command_is_reported_while_a_client_does_not_read_its_output() {
    let shim = Shim::start_loop("");
    let mut slow = Client::connect(&shim);
    slow.exec(1, "exec-1", "exec yes");
    let mut received = 0;
    while received < INITIAL_CREDIT as usize {
        if let PayloadMessage::Stdout(data) = slow.receive().message {
            received += data.len();
        }
    }
    let mut other = Client::connect(&shim);
    let (id, output) = ("exec-1".to_owned(), false);
    other.send(1, HostMessage::Attach { id, output });
    other.send(1, HostMessage::signal(15));
    let ending = Ending::Signaled { signal: 15 };
    let exited = PayloadMessage::Exited {
        ending: ending.clone(),
    };
    while other.receive().message != exited {}
    let ended = PayloadMessage::Ended {
        ending: ending.clone(),
    };
    assert_eq!(slow.receive(), Frame::new(1, ended));
    slow.send(1, HostMessage::Credit { bytes: 1 << 20 });
    let (output, dropped, last) = slow.finish(1);
    assert!(output.contains('y'));
    assert_eq!((dropped, last), (0, ending));
}

#[test]
fn a_removed_execution_is_killed_and_its_client_gets_the_ending() {
    let shim = Shim::start_loop("");
    let mut first = Client::connect(&shim);
    first.exec(1, "exec-1", "sleep 1000");
    assert_eq!(first.list().len(), 1);
    let mut second = Client::connect(&shim);
    second.send(
        5,
        HostMessage::Remove {
            id: "exec-1".into(),
        },
    );
    assert_eq!(second.receive(), Frame::new(5, PayloadMessage::Done));
    assert_eq!(second.list(), []);
    assert_eq!(first.finish(1).2, Ending::Signaled { signal: 9 });
    second.exec(1, "exec-1", "true");
    assert_eq!(second.finish(1).2, Ending::Exited { code: 0 });
}

#[test]
fn executions_end_with_the_payload_and_their_clients_get_the_ending() {
    let mut shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    client.exec(1, "exec-1", "echo last words; sleep 1000 & sleep 1000");
    while !matches!(client.receive().message, PayloadMessage::Stdout(_)) {}
    shim.signal(Signal::SIGTERM);
    assert_eq!(client.finish(1).2, Ending::Signaled { signal: 9 });
    assert_eq!(client.try_receive(), None);
    shim.wait();
    assert!(!shim.path(FILES.control).exists());
}

#[test]
fn each_exit_status_is_reported_once_beside_orphans_of_the_payload() {
    // The payload leaves an orphan each millisecond, which the shim reaps.
    let orphans = "while :; do (exit 9 & ) ; sleep 0.001; done";
    let mut shim = Shim::start(sh(orphans));
    shim.report();
    let mut client = Client::connect(&shim);
    for stream in 1..=200 {
        client.exec(
            stream,
            &format!("exec-{stream}"),
            &format!("exit {}", stream % 100),
        );
    }
    let mut ended = vec![0; 201];
    while ended.iter().sum::<u32>() < 200 {
        let frame = client.receive();
        if let PayloadMessage::Exited { ending } = frame.message {
            let code = i32::try_from(frame.stream % 100).unwrap();
            assert_eq!(ending, Ending::Exited { code });
            ended[frame.stream as usize] += 1;
        }
    }
    assert_eq!(ended.iter().max(), Some(&1));
}

#[test]
fn a_command_that_cannot_be_started_is_not_listed() {
    let shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    for _ in 0..2 {
        client.send(
            1,
            HostMessage::Exec(ExecSpec::new("exec-1", ["/nonexistent"])),
        );
        let (_, _, ending) = client.finish(1);
        assert!(matches!(ending, Ending::Failed { .. }), "{ending:?}");
        assert_eq!(client.list(), []);
    }
}

#[test]
fn a_paused_payload_and_its_executions_do_nothing_until_they_are_resumed() {
    let counter = "i=0; while :; do i=$((i + 1)); echo $i >$VMM_BOX_DIR/ticks; sleep 0.001; done";
    let mut shim = Shim::start(sh(counter));
    shim.report();
    let mut client = Client::connect(&shim);
    client.exec(1, "exec-1", "read line; echo got $line; exit 3");
    // A pause refuses a command that has not started yet.
    let started = client.response(1);
    assert!(
        matches!(started, PayloadMessage::Started { .. }),
        "{started:?}"
    );
    assert_eq!(client.list().len(), 1);
    let ticks = || fs::read_to_string(shim.path("ticks")).unwrap_or_default();
    eventually("the payload works", || ticks().len() > 1);
    client.send(9, HostMessage::Pause);
    if let PayloadMessage::Error(RequestError { message, .. }) = client.response(9) {
        return support::skip(&message);
    }
    let paused_at = ticks();
    client.send(1, HostMessage::Stdin(b"it\n".to_vec()));
    client.send(2, HostMessage::Exec(ExecSpec::new("exec-2", ["true"])));
    let refused = client.response(2);
    let PayloadMessage::Exited { ending } = refused else {
        panic!("{refused:?}");
    };
    assert!(format!("{ending:?}").contains("paused"), "{ending:?}");
    let group = ControlGroup::of_box(shim.dir.path()).unwrap().unwrap();
    assert!(group.is_frozen());
    assert_eq!(ticks(), paused_at);

    client.send(10, HostMessage::Resume);
    assert_eq!(client.response(10), PayloadMessage::Done);
    eventually("the payload continues", || ticks() != paused_at);
    assert_eq!(client.finish(1).2, Ending::Exited { code: 3 });
    shim.signal(Signal::SIGTERM);
    shim.wait();
    assert_eq!(ControlGroup::of_box(shim.dir.path()).unwrap(), None);
}

#[test]
fn a_paused_payload_is_stopped_and_killed() {
    for (signal, code) in [(Signal::SIGTERM, 7), (vmm_protocol::KILL_SIGNAL, 137)] {
        let mut shim = Shim::start(sh(
            "trap 'exit 7' TERM; touch $VMM_BOX_DIR/up; while :; do sleep 0.01; done",
        ));
        shim.report();
        eventually("the payload is up", || shim.path("up").exists());
        let mut client = Client::connect(&shim);
        client.send(9, HostMessage::Pause);
        if let PayloadMessage::Error(RequestError { message, .. }) = client.response(9) {
            return support::skip(&message);
        }
        shim.signal(signal);
        assert_eq!(shim.wait().code(), Some(code));
        assert_eq!(ControlGroup::of_box(shim.dir.path()).unwrap(), None);
    }
}

#[test]
fn a_shim_without_free_descriptors_serves_its_clients_and_later_others() {
    let shim = Shim::start_loop("");
    let mut first = Client::connect(&shim);
    assert_eq!(first.list(), []);
    let open = fs::read_dir(format!("/proc/{}/fd", shim.child.id())).unwrap();
    set_descriptor_limit(&shim, open.count());
    let mut second = Client::connect(&shim);
    second.send(0, HostMessage::List);
    // The hub tries to accept the second client before it responds to the first.
    for _ in 0..10 {
        assert_eq!(first.list(), []);
    }
    set_descriptor_limit(&shim, 1024);
    let response = second.receive().message;
    let (executions, more) = (vec![], false);
    assert_eq!(response, PayloadMessage::Executions { executions, more });
    assert_eq!(first.list(), []);
}

fn set_descriptor_limit(shim: &Shim, limit: usize) {
    let status = Command::new("prlimit")
        .args([
            format!("--pid={}", shim.child.id()),
            format!("--nofile={limit}:"),
        ])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn all_of_many_executions_are_listed() {
    let shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    for n in 0..80 {
        client.exec(1, &format!("{n:-<64}"), "exit 0");
        client.finish(1);
    }
    for n in 0..256 {
        client.exec(n, &format!("running-{n:-<56}"), "read line");
    }
    for _ in 0..256 {
        while !matches!(client.receive().message, PayloadMessage::Started { .. }) {}
    }
    let listed = client.list();
    assert_eq!(
        listed.iter().filter(|one| one.ending.is_none()).count(),
        256
    );
    client.exec(300, "one-more", "exit 0");
    assert_eq!(client.error(), RequestErrorKind::Failed);
    client.exec(300, "no/path", "exit 0");
    assert_eq!(client.error(), RequestErrorKind::Invalid);
}
