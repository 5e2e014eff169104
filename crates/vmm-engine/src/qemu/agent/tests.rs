//! A fake agent at the other end of the port.

use std::io::{Read, Write};
use std::sync::mpsc::Receiver;
use std::thread;

use vmm_protocol::frames::{
    BootPhase, ExecSpec, Frame, FrameReader, HostMessage, PayloadMessage, Strictness, VERSION,
};
use vmm_protocol::network::GuestNetwork;
use vmm_protocol::{Ending, FailureKind, InstanceSpec, PayloadSpec};

use super::workload::{NETWORK_STREAM, WORKLOAD_STREAM};
use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The end of the guest of a port.
struct Guest {
    port: UnixStream,
    reader: FrameReader,
}

impl Guest {
    fn send(&mut self, stream: u32, message: PayloadMessage) {
        let mut wire = Vec::new();
        Frame::new(stream, message).encode(&mut wire).unwrap();
        self.port.write_all(&wire).unwrap();
    }

    fn receive(&mut self) -> Frame<HostMessage> {
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                return frame;
            }
            let mut buffer = [0; 4096];
            let count = self.port.read(&mut buffer).unwrap();
            assert!(count > 0, "the shim has hung up");
            self.reader.push(&buffer[..count]);
        }
    }

    fn get_ready(&mut self, version: u32) {
        let hello = HostMessage::Hello { version: VERSION };
        assert_eq!(self.receive(), Frame::new(0, hello));
        let name = "kernel".to_owned();
        let boot = vec![BootPhase { name, micros: 0 }];
        self.port.write_all(b"garbage of a boot loader").unwrap();
        self.send(0, PayloadMessage::Ready { version, boot });
    }

    /// Receives the request to start the workload, and starts it.
    fn start_workload(&mut self) -> ExecSpec {
        let frame = self.receive();
        let HostMessage::Exec(spec) = frame.message else {
            panic!("{frame:?}");
        };
        assert_eq!(frame.stream, WORKLOAD_STREAM);
        let input_credit = 0;
        let pid = 7;
        self.send(
            WORKLOAD_STREAM,
            PayloadMessage::Started { pid, input_credit },
        );
        spec
    }

    fn end_workload(&mut self, ending: Ending) {
        self.send(WORKLOAD_STREAM, PayloadMessage::Exited { ending });
    }
}

/// A shim's end of the port, its console log, and what is sent when the workload has ended.
struct Shim {
    agent: Agent,
    console: std::io::PipeReader,
    exited: Receiver<()>,
}

impl Shim {
    fn console(mut self) -> String {
        drop(self.agent);
        let mut text = String::new();
        self.console.read_to_string(&mut text).unwrap();
        text
    }
}

fn connect(payload: PayloadSpec) -> (Shim, Guest) {
    connect_with(payload, None)
}

fn connect_with(payload: PayloadSpec, network: Option<GuestNetwork>) -> (Shim, Guest) {
    let (port, of_guest) = UnixStream::pair().unwrap();
    of_guest.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (console, output) = std::io::pipe().unwrap();
    let (sender, exited) = mpsc::channel();
    let workload = Workload::new(&payload, output);
    let spec = InstanceSpec::new("b1", payload);
    let environment = GuestEnvironment::new(&spec, None, network);
    let on_exit = move || sender.send(()).unwrap();
    let agent = Agent::start(port, Instant::now(), environment, workload, on_exit).unwrap();
    let guest = Guest {
        port: of_guest,
        reader: FrameReader::new(Strictness::Strict),
    };
    let shim = Shim {
        agent,
        console,
        exited,
    };
    (shim, guest)
}

fn echo() -> PayloadSpec {
    PayloadSpec::command(["echo", "hello"])
}

fn no_command() -> PayloadSpec {
    PayloadSpec::command::<String>([])
}

#[test]
fn a_guest_without_a_workload_is_ready_with_its_agent() {
    let (shim, mut guest) = connect(no_command());
    assert_eq!(shim.agent.boot_times(), None);
    guest.get_ready(VERSION);
    shim.agent.wait_ready().unwrap();
    assert_eq!(shim.agent.boot_times().unwrap().kernel_ms, 0);
}

#[test]
fn an_agent_of_another_version_is_an_error_that_names_both() {
    let (shim, mut guest) = connect(no_command());
    guest.get_ready(VERSION + 1);
    let error = shim.agent.wait_ready().unwrap_err().to_string();
    let other = format!("version {}", VERSION + 1);
    assert!(
        error.contains(&other) && error.contains("build the image again"),
        "{error}"
    );
}

#[test]
fn the_workload_starts_after_the_agent_has_configured_the_network() {
    let (shim, mut guest) = connect_with(echo(), Some(GuestNetwork::default()));
    guest.get_ready(VERSION);
    let request = HostMessage::ConfigureNetwork(GuestNetwork::default());
    assert_eq!(guest.receive(), Frame::new(NETWORK_STREAM, request));
    guest.send(NETWORK_STREAM, PayloadMessage::Done);
    // A guest that repeats itself starts its workload once.
    guest.send(NETWORK_STREAM, PayloadMessage::Done);
    guest.start_workload();
    shim.agent.wait_ready().unwrap();
    guest.end_workload(Ending::Exited { code: 0 });
    let shutdown = HostMessage::Shutdown { grace_millis: 0 };
    assert_eq!(guest.receive().message, shutdown);
}

#[test]
fn an_agent_that_cannot_configure_the_network_fails_the_start() {
    // An agent of an earlier version responds on stream 0.
    for stream in [NETWORK_STREAM, 0] {
        let (shim, mut guest) = connect_with(echo(), Some(GuestNetwork::default()));
        guest.get_ready(VERSION);
        guest.receive();
        let error = RequestError::new(RequestErrorKind::Failed, "no virtio_net");
        guest.send(stream, PayloadMessage::Error(error));
        let error = shim.agent.wait_ready().unwrap_err();
        assert!(matches!(&error, EngineError::GuestNetwork(message) if message == "no virtio_net"));
    }
}

#[test]
fn a_guest_that_ends_before_it_is_ready_ended_early() {
    for payload in [no_command(), echo()] {
        let (shim, mut guest) = connect(payload);
        guest.port.write_all(b"garbage").unwrap();
        drop(guest);
        let error = shim.agent.wait_ready().unwrap_err();
        assert!(matches!(error, EngineError::EndedEarly), "{error}");
    }
}

#[test]
fn the_exit_of_the_workload_is_kept_and_shuts_the_guest_down() {
    for (ending, exit) in [
        (Ending::Exited { code: 42 }, PayloadExit::Code(42)),
        (Ending::Signaled { signal: 9 }, PayloadExit::Signal(9)),
        (Ending::OutOfMemory, PayloadExit::OutOfMemory),
        // Nothing that an agent reports.
        (
            Ending::failed(FailureKind::Storage, "forged"),
            PayloadExit::Unknown,
        ),
    ] {
        let (shim, mut guest) = connect(echo());
        guest.get_ready(VERSION);
        let exec = guest.start_workload();
        assert_eq!(exec.command, ["echo", "hello"]);
        // The console log has the lines in their order.
        assert!(exec.merge_output);
        shim.agent.wait_ready().unwrap();
        guest.end_workload(ending);
        shim.exited.recv_timeout(TIMEOUT).unwrap();
        let shutdown = HostMessage::Shutdown { grace_millis: 0 };
        assert_eq!(guest.receive().message, shutdown);
        // A second end does not change the first one.
        guest.end_workload(Ending::Exited { code: 1 });
        drop(guest);
        assert_eq!(shim.agent.finish(TIMEOUT), Some(exit));
    }
}

#[test]
fn a_workload_that_the_agent_cannot_start_has_the_kind_of_the_failure() {
    let (shim, mut guest) = connect(echo());
    guest.get_ready(VERSION);
    guest.receive();
    guest.end_workload(Ending::failed(FailureKind::NotFound, "no such program"));
    let ending = Ending::from(shim.agent.wait_ready().unwrap_err());
    assert_eq!(ending.shell_code(), 127);
    let Ending::Failed { message, .. } = ending else {
        panic!("{ending:?}");
    };
    assert!(message.contains("no such program"), "{message}");
}

#[test]
fn a_workload_that_the_agent_reports_before_its_start_is_an_error() {
    let (shim, mut guest) = connect(echo());
    guest.get_ready(VERSION);
    guest.receive();
    guest.end_workload(Ending::Exited { code: 0 });
    let error = shim.agent.wait_ready().unwrap_err();
    assert!(matches!(error, EngineError::Other(_)), "{error}");
}

#[test]
fn output_of_the_workload_goes_to_the_console_and_its_agent_gets_credit() {
    let (shim, mut guest) = connect(echo());
    guest.get_ready(VERSION);
    guest.start_workload();
    guest.send(WORKLOAD_STREAM, PayloadMessage::Stdout(b"out ".to_vec()));
    let credit = HostMessage::Credit { bytes: 4 };
    assert_eq!(guest.receive(), Frame::new(WORKLOAD_STREAM, credit));
    guest.send(WORKLOAD_STREAM, PayloadMessage::Stderr(b"err".to_vec()));
    // The port is closed in the middle of a frame.
    guest.port.write_all(b"VM").unwrap();
    drop(guest);
    assert_eq!(shim.agent.finish(TIMEOUT), None);
    assert_eq!(shim.console(), "out err");
}

#[test]
fn output_that_a_killed_qemu_had_sent_is_not_lost() {
    let (shim, mut guest) = connect(echo());
    guest.get_ready(VERSION);
    guest.start_workload();
    let reader = {
        let mut console = shim.console.try_clone().unwrap();
        thread::spawn(move || {
            let mut text = Vec::new();
            console.read_to_end(&mut text).unwrap();
            text.len()
        })
    };
    // More than the pipe to the console takes.
    for _ in 0..64 {
        guest.send(WORKLOAD_STREAM, PayloadMessage::Stdout(vec![b'x'; 4096]));
    }
    guest.end_workload(Ending::Exited { code: 3 });
    drop(guest);
    assert_eq!(shim.agent.finish(TIMEOUT), Some(PayloadExit::Code(3)));
    drop(shim);
    assert_eq!(reader.join().unwrap(), 64 * 4096);
}

#[test]
fn the_workload_reads_its_stdin_as_far_as_its_credit_goes() {
    let mut payload = echo();
    payload.stdin = Some("x".repeat(300 << 10));
    let (_shim, mut guest) = connect(payload);
    guest.get_ready(VERSION);
    assert!(guest.start_workload().stdin);
    let mut received = 0;
    loop {
        match guest.receive().message {
            HostMessage::Stdin(data) => received += data.len(),
            HostMessage::CloseStdin => break,
            message => panic!("{message:?}"),
        }
        if received == 256 << 10 {
            // Without credit, the next message is not input, but the response to output.
            guest.send(WORKLOAD_STREAM, PayloadMessage::Stdout(b"x".to_vec()));
            assert_eq!(guest.receive().message, HostMessage::Credit { bytes: 1 });
            let bytes = 256 << 10;
            guest.send(WORKLOAD_STREAM, PayloadMessage::Credit { bytes });
        }
    }
    assert_eq!(received, 300 << 10);
}

#[test]
fn a_client_shares_the_port_with_a_shutdown_and_gets_the_environment_of_the_box() {
    let mut payload = echo();
    payload.env.insert("A".into(), "box".into());
    let (shim, mut guest) = connect(payload);
    let error = shim.agent.open().unwrap_err();
    assert_eq!(error.kind, RequestErrorKind::NotReady);
    guest.get_ready(VERSION);
    guest.start_workload();
    shim.agent.wait_ready().unwrap();
    let client = UnixStream::from(shim.agent.open().unwrap());
    client.set_read_timeout(Some(TIMEOUT)).unwrap();

    let mut wire = Vec::new();
    let exec = HostMessage::Exec(ExecSpec::new("x", ["true"]));
    Frame::new(1, exec).encode(&mut wire).unwrap();
    let (first, rest) = wire.split_at(20);
    (&client).write_all(first).unwrap();
    // The client has sent a part of a frame. A shutdown does not end up within it.
    shim.agent.request_shutdown(Duration::from_secs(3));
    let shutdown = HostMessage::Shutdown { grace_millis: 3000 };
    assert_eq!(guest.receive(), Frame::new(0, shutdown));
    (&client).write_all(rest).unwrap();
    let frame = guest.receive();
    let HostMessage::Exec(spec) = frame.message else {
        panic!("{frame:?}");
    };
    assert_eq!((frame.stream, &*spec.env["A"]), (1, "box"));

    // More than the socket to the client takes, and then the end of the guest.
    let output = PayloadMessage::Stdout(vec![b'x'; 30 << 10]);
    for _ in 0..10 {
        guest.send(1, output.clone());
    }
    drop(guest);
    shim.agent.finish(TIMEOUT);
    let mut received = Vec::new();
    (&client).read_to_end(&mut received).unwrap();
    let mut reader = FrameReader::new(Strictness::Strict);
    reader.push(&received);
    for _ in 0..10 {
        let frame = reader.next_frame().unwrap();
        assert_eq!(frame, Some(Frame::new(1, output.clone())));
    }
}

#[test]
fn a_workload_does_not_start_after_a_shutdown_was_requested() {
    let (shim, mut guest) = connect(echo());
    shim.agent.request_shutdown(Duration::ZERO);
    guest.get_ready(VERSION);
    let shutdown = HostMessage::Shutdown { grace_millis: 0 };
    assert_eq!(guest.receive().message, shutdown);
    guest.port.shutdown(std::net::Shutdown::Write).unwrap();
    let error = shim.agent.wait_ready().unwrap_err();
    assert!(matches!(error, EngineError::EndedEarly), "{error}");
    let mut rest = Vec::new();
    guest.port.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn a_command_that_is_longer_than_a_frame_fails_the_start() {
    let (shim, mut guest) = connect(PayloadSpec::command(["echo", &"x".repeat(70 << 10)]));
    guest.get_ready(VERSION);
    let ending = Ending::from(shim.agent.wait_ready().unwrap_err());
    let Ending::Failed { kind, message } = ending else {
        panic!("{ending:?}");
    };
    assert_eq!(kind, FailureKind::Spec);
    assert!(message.contains("65536 bytes"), "{message}");
}
