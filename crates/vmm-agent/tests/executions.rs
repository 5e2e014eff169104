//! Commands that a server runs for a host.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use common::Host;
use common::guest::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmm_protocol::frames::{
    ExecSpec, Frame, GetSpec, HostMessage, INITIAL_CREDIT, PayloadMessage, PutSpec, RequestError,
    RequestErrorKind, TerminalSize, VERSION,
};
use vmm_protocol::{Ending, FailureKind};

#[test]
fn a_server_reports_its_version_and_responds_to_pings() {
    let mut host = Host::new();
    host.send(0, HostMessage::Hello { version: VERSION });
    host.send(0, HostMessage::Ping { token: 7 });
    let ready = host.receive().message;
    assert!(matches!(ready, PayloadMessage::Ready { version, .. } if version == VERSION));
    assert_eq!(
        host.receive(),
        Frame::new(0, PayloadMessage::Pong { token: 7 })
    );
}

#[test]
fn output_and_error_output_arrive_apart_and_before_the_end() {
    let mut host = Host::new();
    let outcome = host.run(1, &["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(outcome.stdout, b"out\n");
    assert_eq!(outcome.stderr, b"err\n");
    assert_eq!(*outcome.ending(), Ending::Exited { code: 42 });
}

#[test]
fn merged_output_arrives_in_its_order() {
    let mut host = Host::new();
    let script = "for i in $(seq 200); do echo out $i; echo err $i >&2; done";
    let mut spec = ExecSpec::new("exec-1", ["sh", "-c", script]);
    spec.merge_output = true;
    host.send(1, HostMessage::Exec(spec));
    let outcome = host.finish(1);
    let expected: String = (1..=200).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_eq!(outcome.text(), expected);
    assert_eq!(outcome.stderr, b"");
}

#[test]
fn all_that_a_command_has_written_to_an_enlarged_pipe_arrives_after_its_end() {
    const SIZE: usize = 1 << 20;
    let mut host = Host::new();
    let script = format!(
        "import fcntl, os; fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, {SIZE}); os.write(1, bytes({SIZE}))"
    );
    host.exec(1, &["python3", "-c", &script]);
    let mut received = 0;
    let mut pid = 0;
    while received < INITIAL_CREDIT as usize {
        match host.receive().message {
            PayloadMessage::Started { pid: child, .. } => pid = child,
            PayloadMessage::Stdout(data) => received += data.len(),
            message => panic!("{message:?}"),
        }
    }
    // The rest is in the pipe.
    eventually(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    host.grant(1, SIZE);
    let outcome = host.finish(1);
    assert_eq!(*outcome.ending(), Ending::Exited { code: 0 });
    assert_eq!(received + outcome.stdout.len(), SIZE);
}

#[test]
fn an_end_is_reported_as_it_was() {
    let mut host = Host::new();
    for code in [0, 1, 255] {
        let script = format!("exit {code}");
        let outcome = host.run(1, &["sh", "-c", &script]);
        assert_eq!(*outcome.ending(), Ending::Exited { code });
    }
    let outcome = host.run(1, &["sh", "-c", "kill -KILL $$"]);
    assert_eq!(*outcome.ending(), Ending::Signaled { signal: 9 });
    for (command, kind) in [
        ("/nonexistent", FailureKind::NotFound),
        ("/", FailureKind::NotExecutable),
    ] {
        let outcome = host.run(1, &[command]);
        let ending = outcome.ending();
        assert!(
            matches!(ending, Ending::Failed { kind: k, .. } if *k == kind),
            "{ending:?}"
        );
    }
}

#[test]
fn a_command_reads_its_stdin_to_the_end() {
    let mut host = Host::new();
    let mut spec = ExecSpec::new("exec-1", ["wc", "-c"]);
    spec.stdin = true;
    host.send(1, HostMessage::Exec(spec));
    // More than the credit of the stream in total.
    let mut credit = INITIAL_CREDIT as usize;
    let data = vec![b'x'; 50_000];
    for _ in 0..20 {
        while credit < data.len() {
            match host.receive().message {
                PayloadMessage::Credit { bytes } => credit += bytes as usize,
                PayloadMessage::Started { .. } => {}
                message => panic!("{message:?}"),
            }
        }
        credit -= data.len();
        host.send(1, HostMessage::Stdin(data.clone()));
    }
    host.send(1, HostMessage::CloseStdin);
    assert_eq!(host.finish(1).text().trim(), "1000000");
}

#[test]
fn a_host_that_sends_more_than_its_credit_is_an_error() {
    let mut host = Host::new();
    let mut spec = ExecSpec::new("exec-1", ["sleep", "1000"]);
    spec.stdin = true;
    host.send(1, HostMessage::Exec(spec));
    let frames = INITIAL_CREDIT as usize / 50_000 + 3;
    for _ in 0..frames {
        host.send(1, HostMessage::Stdin(vec![0; 50_000]));
    }
    loop {
        match host.receive().message {
            PayloadMessage::Error(error) => {
                assert_eq!(error.kind, RequestErrorKind::Invalid);
            }
            PayloadMessage::Exited { ending } => {
                assert_eq!(ending, Ending::Signaled { signal: 9 });
                break;
            }
            _ => {}
        }
    }
}

#[test]
fn output_that_the_host_does_not_read_stops_its_command_only() {
    let mut host = Host::new();
    host.exec(1, &["yes"]);
    let mut received = 0;
    while received < INITIAL_CREDIT as usize {
        let frame = host.receive();
        if let PayloadMessage::Stdout(data) = frame.message {
            received += data.len();
        }
    }
    // Without credit for `yes`, only the other command is heard.
    assert_eq!(host.run(2, &["echo", "hello"]).text(), "hello\n");
    assert_eq!(received, INITIAL_CREDIT as usize);
    host.grant(1, 10);
    assert_eq!(
        host.receive(),
        Frame::new(1, PayloadMessage::Stdout(b"y\ny\ny\ny\ny\n".to_vec()))
    );
    host.send(1, HostMessage::signal(15));
    let ending = Ending::Signaled { signal: 15 };
    let ended = PayloadMessage::Ended {
        ending: ending.clone(),
    };
    assert_eq!(host.receive(), Frame::new(1, ended), "before the output");
    host.grant(1, 1 << 20);
    let outcome = host.finish(1);
    assert!(!outcome.stdout.is_empty());
    assert_eq!(*outcome.ending(), ending);
}

#[test]
fn a_command_that_always_writes_to_stdout_is_also_heard_on_stderr() {
    let mut host = Host::new();
    host.exec(1, &["sh", "-c", "yes & sleep 0.1; echo err >&2; wait"]);
    let mut credit = INITIAL_CREDIT as usize;
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        match host.receive().message {
            PayloadMessage::Stdout(data) => credit -= data.len(),
            PayloadMessage::Stderr(data) => {
                host.send(1, HostMessage::signal(9));
                return assert_eq!(data, b"err\n");
            }
            _ => {}
        }
        if credit == 0 {
            // Both outputs want all of it.
            credit = 10;
            host.grant(1, credit);
        }
    }
    panic!("there is only stdout");
}

#[test]
fn commands_that_always_write_take_turns_on_a_slow_connection() {
    let mut host = Host::new();
    let streams = 1..=40;
    for stream in streams.clone() {
        host.exec(stream, &["yes"]);
        // The first ones never lack credit.
        host.grant(stream, 1 << 30);
    }
    let mut heard = BTreeSet::new();
    let mut frames = 0;
    while heard.len() < streams.clone().count() {
        let frame = host.receive();
        frames += 1;
        assert!(frames < 10_000, "{heard:?}");
        if let PayloadMessage::Stdout(_) = frame.message {
            heard.insert(frame.stream);
        }
    }
    for stream in streams {
        host.send(stream, HostMessage::signal(9));
    }
}

#[test]
fn a_signal_reaches_the_process_group_of_the_command() {
    let mut host = Host::new();
    let script = "sleep 1000 & trap 'wait; exit 3' TERM; echo ready; wait; wait";
    host.exec(1, &["sh", "-c", script]);
    while !matches!(host.receive().message, PayloadMessage::Stdout(_)) {}
    host.send(1, HostMessage::signal(15));
    assert_eq!(*host.finish(1).ending(), Ending::Exited { code: 3 });
}

#[test]
fn a_signal_to_a_command_does_not_reach_its_process_group() {
    let mut host = Host::new();
    // A process that is stopped keeps a signal pending. SIGTERM is bit 14.
    let script = "sleep 1000 & c=$!; kill -STOP $c; \
                  trap 'grep -c ^ShdPnd.*4000 /proc/$c/status; kill -9 $c; exit 3' TERM; \
                  echo ready; while :; do sleep 0.01; done";
    host.exec(1, &["sh", "-c", script]);
    while !matches!(host.receive().message, PayloadMessage::Stdout(_)) {}
    let (signal, only_command) = (15, true);
    host.send(
        1,
        HostMessage::Signal {
            signal,
            only_command,
        },
    );
    let outcome = host.finish(1);
    assert_eq!(outcome.text(), "0\n");
    assert_eq!(*outcome.ending(), Ending::Exited { code: 3 });
}

#[test]
fn a_real_time_signal_is_sent() {
    let mut host = Host::new();
    host.exec(1, &["sleep", "1000"]);
    host.send(1, HostMessage::signal(40));
    assert_eq!(*host.finish(1).ending(), Ending::Signaled { signal: 40 });
}

#[test]
fn a_command_is_killed_after_its_timeout() {
    let mut host = Host::new();
    let mut spec = ExecSpec::new("exec-1", ["sleep", "1000"]);
    spec.timeout_millis = Some(20);
    host.send(1, HostMessage::Exec(spec));
    assert_eq!(*host.finish(1).ending(), Ending::Signaled { signal: 9 });
}

#[test]
fn a_process_that_outlives_its_command_does_not_delay_the_end() {
    let mut host = Host::new();
    let outcome = host.run(1, &["sh", "-c", "sleep 1000 & echo $!"]);
    assert_eq!(*outcome.ending(), Ending::Exited { code: 0 });
    let pid = outcome.text().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn a_command_with_a_terminal_leads_its_session() {
    let mut host = Host::new();
    let mut spec = ExecSpec::new(
        "exec-1",
        [
            "sh",
            "-c",
            "trap 'stty size; exit 5' WINCH; stty size; while :; do sleep 0.01; done",
        ],
    );
    spec.terminal = Some(TerminalSize { rows: 24, cols: 80 });
    host.send(1, HostMessage::Exec(spec));
    let mut text = String::new();
    while !text.contains("24 80") {
        if let PayloadMessage::Stdout(data) = host.receive().message {
            text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }
    host.send(
        1,
        HostMessage::Resize(TerminalSize {
            rows: 50,
            cols: 100,
        }),
    );
    let outcome = host.finish(1);
    assert!(outcome.text().contains("50 100"), "{outcome:?}");
    assert_eq!(*outcome.ending(), Ending::Exited { code: 5 });
}

#[test]
fn a_process_that_goes_on_writing_does_not_delay_the_end() {
    let mut host = Host::new();
    let outcome = host.run(1, &["sh", "-c", "yes & echo $!; exit 3"]);
    assert_eq!(*outcome.ending(), Ending::Exited { code: 3 });
    let pid = outcome.text().lines().find(|line| *line != "y").unwrap();
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn characters_typed_at_a_terminal_interrupt_and_end_a_command() {
    let mut host = Host::new();
    for (input, expected) in [
        (Some(b"\x03".to_vec()), Ending::Signaled { signal: 2 }),
        (None, Ending::Exited { code: 0 }),
    ] {
        let mut spec = ExecSpec::new("exec-1", ["cat"]);
        spec.terminal = Some(TerminalSize { rows: 24, cols: 80 });
        host.send(1, HostMessage::Exec(spec));
        match input {
            Some(input) => host.send(1, HostMessage::Stdin(input)),
            None => host.send(1, HostMessage::CloseStdin),
        }
        assert_eq!(*host.finish(1).ending(), expected);
    }
}

#[test]
fn executions_go_on_while_no_host_is_connected() {
    let mut host = Host::new();
    host.exec(1, &["sh", "-c", "read line; echo got $line"]);
    host.exec(2, &["cat"]);
    let mut spec = ExecSpec::new("exec-3", ["sh", "-c", "read line; echo got $line"]);
    spec.stdin = true;
    host.send(3, HostMessage::Exec(spec));
    let mut started = 0;
    while started < 3 {
        started += usize::from(matches!(
            host.receive().message,
            PayloadMessage::Started { .. }
        ));
    }
    let mut host = Host::connect(host.hang_up());
    host.send(3, HostMessage::Stdin(b"it\n".to_vec()));
    let mut ended = BTreeSet::new();
    let mut text = Vec::new();
    while !ended.contains(&3) {
        let frame = host.receive();
        match frame.message {
            PayloadMessage::Stdout(data) if frame.stream == 3 => text.extend(data),
            PayloadMessage::Exited { .. } => {
                ended.insert(frame.stream);
            }
            _ => {}
        }
    }
    assert_eq!(text, b"got it\n");
}

#[test]
fn many_commands_run_at_once_and_each_end_is_reported_once() {
    let mut host = Host::new();
    let mut running = BTreeSet::new();
    let mut next = 1;
    let mut ended = 0;
    while ended < 1_000 {
        while running.len() < 64 && next <= 1_000 {
            let script = format!("exit {}", next % 200);
            host.exec(next, &["sh", "-c", &script]);
            running.insert(next);
            next += 1;
        }
        let frame = host.receive();
        if let PayloadMessage::Exited { ending } = frame.message {
            assert!(running.remove(&frame.stream), "stream {}", frame.stream);
            let code = i32::try_from(frame.stream % 200).unwrap();
            assert_eq!(ending, Ending::Exited { code });
            ended += 1;
        }
    }
}

#[test]
fn requests_that_the_payload_does_not_support_are_errors() {
    let mut host = Host::new();
    let get = HostMessage::Get(GetSpec::new("/etc"));
    let put = HostMessage::Put(PutSpec::new("/etc"));
    for (stream, message) in [
        (0, HostMessage::Pause),
        (1, get),
        (2, put),
        (0, HostMessage::Stats),
        (0, HostMessage::List),
    ] {
        host.send(stream, message);
        let frame = host.receive();
        assert_eq!(frame.stream, stream);
        let PayloadMessage::Error(RequestError { kind, message }) = frame.message else {
            panic!("{frame:?}");
        };
        assert_eq!(kind, RequestErrorKind::Unsupported, "{message}");
    }
}
