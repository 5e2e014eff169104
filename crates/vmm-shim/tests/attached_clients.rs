//! Clients attach to executions: one at a time gets the output.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use nix::sys::signal::Signal;
use support::Shim;
use support::client::Client;
use vmm_protocol::frames::{
    ExecSpec, HostMessage, INITIAL_CREDIT, PayloadMessage, RequestErrorKind,
};
use vmm_shim::Ending;

fn attach(id: &str, output: bool) -> HostMessage {
    let id = id.to_owned();
    HostMessage::Attach { id, output }
}

#[test]
fn one_client_at_a_time_gets_the_output_and_others_send_signals() {
    let shim = Shim::start_loop("");
    let mut first = Client::connect(&shim);
    first.exec(
        1,
        "exec-1",
        // The signal also ends `sleep`, which the shell would report on stderr.
        "exec 2>&-; trap 'echo trapped; exit 6' TERM; echo ready; while :; do sleep 0.01; done",
    );
    while !matches!(first.receive().message, PayloadMessage::Stdout(_)) {}
    let mut second = Client::connect(&shim);
    second.send(1, attach("exec-1", true));
    assert_eq!(second.error(), RequestErrorKind::InUse);
    second.send(1, attach("exec-2", true));
    assert_eq!(second.error(), RequestErrorKind::NotFound);
    second.send(2, attach("exec-1", false));
    second.send(2, HostMessage::signal(15));
    assert_eq!(
        first.finish(1),
        ("trapped\n".into(), 0, Ending::Exited { code: 6 })
    );
}

#[test]
fn a_client_takes_over_an_execution_whose_client_has_just_left() {
    let shim = Shim::start_loop("");
    for n in 0..10 {
        let id = format!("exec-{n}");
        let mut first = Client::connect(&shim);
        first.exec(1, &id, "read line; echo got $line; exit 7");
        assert!(matches!(first.response(1), PayloadMessage::Started { .. }));
        let mut second = Client::connect(&shim);
        second.send(0, HostMessage::Ping { token: 1 });
        assert_eq!(second.response(0), PayloadMessage::Pong { token: 1 });

        // The shim gets the hang-up and the request at once.
        shim.stop();
        // A process that another test forks can have a copy of the descriptor.
        first.shut_down();
        second.send(7, attach(&id, true));
        second.send(7, HostMessage::Stdin(b"it\n".to_vec()));
        shim.signal(Signal::SIGCONT);
        let expected = ("got it\n".into(), 0, Ending::Exited { code: 7 });
        assert_eq!(second.finish(7), expected);
    }
}

#[test]
fn a_client_that_attaches_again_learns_how_much_input_it_may_send() {
    let shim = Shim::start_loop("");
    let mut first = Client::connect(&shim);
    first.exec(1, "exec-1", "sleep 1000");
    let send = |client: &mut Client, stream, count: u32| {
        for _ in 0..count / 1024 {
            client.send(stream, HostMessage::Stdin(vec![0; 1024]));
        }
    };
    // The payload takes this input, and the shim holds what follows.
    send(&mut first, 1, INITIAL_CREDIT);
    let mut granted = 0;
    while granted < INITIAL_CREDIT {
        if let PayloadMessage::Credit { bytes } = first.receive().message {
            granted += bytes;
        }
    }
    send(&mut first, 1, INITIAL_CREDIT);
    first.send(0, HostMessage::Ping { token: 1 });
    while first.receive().message != (PayloadMessage::Pong { token: 1 }) {}
    drop(first);

    let mut second = Client::connect(&shim);
    second.send(7, attach("exec-1", true));
    let PayloadMessage::Started {
        input_credit: credit,
        ..
    } = second.response(7)
    else {
        panic!("the client is not attached");
    };
    assert!(credit < INITIAL_CREDIT, "{credit}");
    send(&mut second, 7, credit);
    second.send(0, HostMessage::Ping { token: 2 });
    // An error would come first; the command can have taken more of the input.
    loop {
        match second.receive().message {
            PayloadMessage::Credit { .. } => {}
            message => break assert_eq!(message, PayloadMessage::Pong { token: 2 }),
        }
    }
}

#[test]
fn a_client_that_attaches_during_the_start_gets_one_response() {
    let shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    for n in 0..20 {
        let id = format!("exec-{n}");
        let spec = ExecSpec::new(&id, ["true"]);
        client.send(1, HostMessage::Start(spec));
        client.send(7, attach(&id, true));
        let mut responses = 0;
        while let PayloadMessage::Started { pid, .. } = client.response(7) {
            assert!(pid > 0);
            responses += 1;
        }
        assert_eq!(responses, 1);
    }
}
