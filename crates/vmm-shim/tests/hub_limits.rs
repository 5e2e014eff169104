//! What clients request takes bounded memory of the shim, and no output is lost to the bounds.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use support::client::Client;
use support::{DEADLINE, Shim};
use vmm_protocol::frames::{ExecSpec, Frame, HostMessage, PayloadMessage, RequestErrorKind};
use vmm_shim::Ending;

fn attach(id: &str, output: bool) -> HostMessage {
    let id = id.to_owned();
    HostMessage::Attach { id, output }
}

/// Starts a command without attaching to it, and waits for its end.
fn start_and_wait(client: &mut Client, stream: u32, id: &str, script: &str) {
    let spec = ExecSpec::new(id, ["sh", "-c", script]);
    client.send(stream, HostMessage::Start(spec));
    while !matches!(client.response(stream), PayloadMessage::Exited { .. }) {}
}

#[test]
fn executions_that_end_before_their_clients_attach_keep_output_and_exit_code() {
    // More than the shim keeps for clients that ask later.
    const COUNT: u32 = 70;
    let shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    for n in 1..=COUNT {
        start_and_wait(
            &mut client,
            n,
            &format!("exec-{n}"),
            &format!("echo {n}; exit {n}"),
        );
    }
    for n in 1..=COUNT {
        client.send(n, attach(&format!("exec-{n}"), true));
        let code = n.cast_signed();
        let expected = (format!("{n}\n"), 0, Ending::Exited { code });
        assert_eq!(client.finish(n), expected);
    }
    start_and_wait(&mut client, 0, "last", "exit 0");
    // Those that were read are kept as before.
    assert_eq!(client.list().len(), 64 + 1);
}

#[test]
fn requests_wait_until_their_client_reads_the_responses() {
    // More than the sockets hold.
    const REQUESTS: usize = 200_000;
    const MAX_GROWTH_KIB: u64 = 3 << 10;
    let shim = Shim::start_loop("");
    let mut slow = Client::connect(&shim);
    for n in 1..=64 {
        slow.exec(n, &format!("{n:-<64}"), "exit 0");
        slow.finish(n);
    }
    let before = shim.peak_memory_kib();
    let mut sender = slow.try_clone();
    let sender = thread::spawn(move || sender.send_repeated(REQUESTS, 0, HostMessage::List));
    // The hub has handled what it handles of the requests before.
    let mut other = Client::connect(&shim);
    assert_eq!(other.list().len(), 64);
    assert_eq!(other.list().len(), 64);
    for _ in 0..2_000 {
        while !matches!(
            slow.receive().message,
            PayloadMessage::Executions { more: false, .. }
        ) {}
    }
    let growth = shim.peak_memory_kib() - before;
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB");
    slow.shut_down();
    assert!(sender.join().unwrap().is_err());
}

#[test]
fn a_client_has_a_limited_number_of_open_streams() {
    const MAX_STREAMS: u32 = 1024;
    let shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    client.exec(0, "exec-0", "read line");
    for stream in 1..MAX_STREAMS {
        client.send(stream, attach("exec-0", false));
        let response = client.response(stream);
        assert!(
            matches!(response, PayloadMessage::Started { .. }),
            "{response:?}"
        );
    }
    let refuse = |client: &mut Client, message| {
        client.send(MAX_STREAMS, message);
        assert_eq!(client.error(), RequestErrorKind::Failed);
    };
    refuse(&mut client, attach("exec-0", false));
    refuse(
        &mut client,
        HostMessage::Exec(ExecSpec::new("exec-1", ["true"])),
    );
    assert_eq!(client.list().len(), 1);

    client.send(0, HostMessage::CloseStdin);
    let mut ended = BTreeSet::new();
    while ended.len() < MAX_STREAMS as usize {
        let Frame { stream, message } = client.receive();
        if let PayloadMessage::Exited { .. } = message {
            assert!(ended.insert(stream), "{stream} ends twice");
        }
    }
    assert!(ended.into_iter().eq(0..MAX_STREAMS));
    // A stream to an execution that has ended is closed at once.
    for stream in 0..2 * MAX_STREAMS {
        client.send(stream, attach("exec-0", false));
        let started = client.response(stream);
        assert!(
            matches!(started, PayloadMessage::Started { .. }),
            "{started:?}"
        );
        let ended = client.response(stream);
        assert!(matches!(ended, PayloadMessage::Exited { .. }), "{ended:?}");
    }
}

#[test]
fn a_client_that_does_not_complete_a_frame_is_disconnected() {
    let shim = Shim::start_loop("");
    let [mut idle, mut stuck, mut slow] = [(); 3].map(|()| Client::connect(&shim));
    let mut silent = Client::connect(&shim);
    for client in [&mut idle, &mut stuck, &mut slow] {
        assert_eq!(client.list(), []);
    }
    stuck.send_partial_frame();
    slow.send_partial_frame();
    let deadline = Instant::now() + DEADLINE;
    while slow.try_send_bytes(&[0]).is_ok() {
        assert!(Instant::now() < deadline, "the frame has no end");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(stuck.try_receive(), None);
    // It has sent nothing.
    assert_eq!(silent.try_receive(), None);
    // Between two frames, a client has time.
    assert_eq!(idle.list(), []);
}

#[test]
fn a_client_beyond_the_limit_waits_until_another_leaves() {
    const MAX_CLIENTS: u64 = 512;
    let shim = Shim::start_loop("");
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| Client::connect(&shim)).collect();
    let pong = |token| Frame::new(0, PayloadMessage::Pong { token });
    let mut token = 0;
    let mut ping = |client: &mut Client| {
        token += 1;
        client.send(0, HostMessage::Ping { token });
        token
    };
    for client in &mut clients {
        let token = ping(client);
        assert_eq!(client.receive(), pong(token));
    }
    let mut waiting = Client::connect(&shim);
    let waiting_token = ping(&mut waiting);
    for client in &mut clients[..10] {
        let token = ping(client);
        assert_eq!(client.receive(), pong(token));
    }
    assert!(!waiting.has_response());
    clients.pop();
    assert_eq!(waiting.receive(), pong(waiting_token));
}
