//! A guest that breaks the rules of the control frames harms its own execution only. The program has
//! no test harness, because it is its own shim, with an engine whose guest is a thread.
#![allow(clippy::panic, clippy::unwrap_used)]

#[macro_use]
mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::client::Client;
use support::{Shim, sh, spec};
use vmm_protocol::frames::{
    ExecSpec, Frame, FrameReader, HostMessage, INITIAL_CREDIT, MAX_BODY, PayloadMessage, Strictness,
};
use vmm_shim::{
    Call, ControlChannel, Ending, Engine, EngineError, FailureKind, InstanceSpec, Payload,
    PayloadExit, Report, RequestError,
};

const FLOOD_BYTES: usize = 64 << 20;

/// How much memory the flood may add to the shim.
const MAX_GROWTH_KIB: u64 = 8 << 10;

/// A guest that does what the program of a command names.
struct Hostile;

impl Engine for Hostile {
    fn name(&self) -> &str {
        "hostile"
    }

    fn start(&self, _: &InstanceSpec, _: &Path) -> Result<Box<dyn Payload>, EngineError> {
        Ok(Box::new(Self))
    }
}

impl Payload for Hostile {
    fn pid(&self) -> Option<u32> {
        None
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn control_channel(&self) -> Option<&dyn ControlChannel> {
        Some(self)
    }

    fn calls(&self) -> Option<&dyn Call> {
        Some(self)
    }

    fn stop(&self, _grace: Duration) {}

    fn kill(&self) {}

    /// Waits until the file `end` exists.
    fn wait(&self) -> io::Result<PayloadExit> {
        while !Path::new("end").exists() {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(PayloadExit::Code(0))
    }
}

impl Call for Hostile {
    /// Responds once the file `respond` exists.
    fn call(&self, _: &Value) -> Result<Value, RequestError> {
        panic_if_requested();
        fs::write("called", "").unwrap();
        support::eventually("the response", || Path::new("respond").exists());
        Ok(Value::Bool(true))
    }
}

/// The socket at which a test waits to be the guest itself.
const GUEST_SOCKET: &str = "guest.sock";

impl ControlChannel for Hostile {
    fn open(&self) -> Result<OwnedFd, RequestError> {
        if let Ok(host) = UnixStream::connect(GUEST_SOCKET) {
            return Ok(host.into());
        }
        panic_if_requested();
        let (host, guest) = UnixStream::pair().unwrap();
        thread::spawn(|| Guest::new(guest).serve());
        Ok(host.into())
    }
}

/// Panics if the file `panic` exists.
fn panic_if_requested() {
    assert!(!Path::new("panic").exists(), "this panic ends the shim");
}

struct Guest {
    port: UnixStream,
    reader: FrameReader,
}

impl Guest {
    fn new(port: UnixStream) -> Self {
        Self {
            port,
            reader: FrameReader::new(Strictness::Strict),
        }
    }

    fn serve(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            while let Ok(Some(frame)) = self.reader.next_frame() {
                self.handle(frame);
            }
            match self.port.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => self.reader.push(&buffer[..length]),
            }
        }
    }

    fn handle(&mut self, Frame { stream, message }: Frame<HostMessage>) {
        let spec = match message {
            HostMessage::Exec(spec) => spec,
            HostMessage::CloseStdin => return fs::write("closed", "").unwrap(),
            _ => return,
        };
        match spec.command[0].as_str() {
            "garbage" => self.send_garbage(stream),
            "flood" => self.flood(stream),
            "repeat" => self.repeat(stream),
            "explain" => self.explain(stream),
            "stall" => self.stall(stream),
            _ => self.run(stream),
        }
    }

    /// Sends what is not a frame, and the header of a frame that is too long, between frames.
    fn send_garbage(&mut self, stream: u32) {
        let garbage: Vec<u8> = (0..1_000_000_u32)
            .map(|n| (n.wrapping_mul(n) >> 7) as u8)
            .collect();
        self.port.write_all(&garbage).unwrap();
        self.send(stream, started());
        self.port
            .write_all(b"VM\x02\0\xff\xff\xff\xff\xff\xff\xff\xff")
            .unwrap();
        self.send(stream, exited(3));
    }

    /// Sends output without credit, a byte in each of the first frames.
    fn flood(&mut self, stream: u32) {
        self.send(stream, started());
        let mut wire = Vec::new();
        for n in 0..100_000 {
            let byte = vec![b'x'];
            let message = if n % 2 == 0 {
                PayloadMessage::Stdout(byte)
            } else {
                PayloadMessage::Stderr(byte)
            };
            Frame::new(stream, message).encode(&mut wire).unwrap();
        }
        self.port.write_all(&wire).unwrap();
        for _ in 0..(FLOOD_BYTES - 100_000) / MAX_BODY {
            self.send(stream, PayloadMessage::Stdout(vec![b'x'; MAX_BODY]));
        }
        self.send(stream, exited(4));
    }

    /// Repeats messages that come once, and sends some on streams that the host does not have.
    fn repeat(&mut self, stream: u32) {
        for other in [0, stream + 1, u32::MAX] {
            self.send(other, PayloadMessage::Stdout(vec![0; MAX_BODY]));
            self.send(other, PayloadMessage::Credit { bytes: u32::MAX });
            self.send(other, exited(9));
        }
        for _ in 0..3 {
            self.send(stream, started());
            self.send(stream, PayloadMessage::Credit { bytes: u32::MAX });
        }
        self.send(stream, PayloadMessage::Done);
        self.send(stream, exited(5));
        self.send(stream, PayloadMessage::Stdout(b"late".to_vec()));
        self.send(stream, exited(6));
    }

    /// Fails with the longest message that a host reads.
    fn explain(&mut self, stream: u32) {
        self.send(stream, started());
        let ending = Ending::failed(FailureKind::Engine, "\u{1}".repeat(4 << 10));
        self.send(stream, PayloadMessage::Exited { ending });
    }

    /// Reads nothing until the file `continue` exists, or `leave`. Then it hangs up.
    fn stall(&mut self, stream: u32) {
        self.send(stream, started());
        support::eventually("the guest continues", || {
            Path::new("continue").exists() || Path::new("leave").exists()
        });
        if Path::new("leave").exists() {
            self.port.shutdown(Shutdown::Both).unwrap();
            self.reader = FrameReader::new(Strictness::Strict);
        }
    }

    fn run(&mut self, stream: u32) {
        self.send(stream, started());
        self.send(stream, PayloadMessage::Stdout(b"hello".to_vec()));
        self.send(stream, exited(0));
    }

    fn send(&mut self, stream: u32, message: PayloadMessage) {
        let mut wire = Vec::new();
        Frame::new(stream, message).encode(&mut wire).unwrap();
        self.port.write_all(&wire).unwrap();
    }
}

fn started() -> PayloadMessage {
    started_with_credit(u32::MAX)
}

fn started_with_credit(input_credit: u32) -> PayloadMessage {
    PayloadMessage::Started {
        pid: u32::MAX,
        input_credit,
    }
}

fn exited(code: i32) -> PayloadMessage {
    let ending = Ending::Exited { code };
    PayloadMessage::Exited { ending }
}

fn start() -> (Shim, Client) {
    let mut payload = sh("");
    payload.engine = "hostile".to_owned();
    let mut shim = Shim::with_input(&spec(payload).to_line().unwrap());
    assert!(matches!(shim.report(), Report::Ready { .. }));
    let client = Client::connect(&shim);
    (shim, client)
}

fn exec(client: &mut Client, stream: u32, program: &str) {
    let spec = ExecSpec::new(format!("exec-{stream}"), [program]);
    client.send(stream, HostMessage::Exec(spec));
}

/// Asserts that a client gets what another command does.
fn assert_serves(shim: &Shim) {
    let mut client = Client::connect(shim);
    let spec = ExecSpec::new("another", ["well-behaved"]);
    client.send(1, HostMessage::Exec(spec));
    let expected = ("hello".to_owned(), 0, Ending::Exited { code: 0 });
    assert_eq!(client.finish(1), expected);
}

fn bytes_that_are_not_frames_are_skipped() {
    let (shim, mut client) = start();
    exec(&mut client, 1, "garbage");
    assert_eq!(client.finish(1).2, Ending::Exited { code: 3 });
    assert_serves(&shim);
}

fn output_beyond_the_credit_is_dropped_and_takes_no_memory() {
    let (shim, mut client) = start();
    // The hub and its threads have started.
    assert_eq!(client.list(), []);
    let before = shim.peak_memory_kib();
    exec(&mut client, 1, "flood");
    // The client does not read yet.
    assert_serves(&shim);
    let growth = shim.peak_memory_kib() - before;
    let (output, dropped, ending) = client.finish(1);
    assert_eq!(ending, Ending::Exited { code: 4 });
    assert!(
        output.len() >= INITIAL_CREDIT as usize - MAX_BODY,
        "{}",
        output.len()
    );
    let sent = 100_000 + (FLOOD_BYTES - 100_000) / MAX_BODY * MAX_BODY;
    assert_eq!(output.len() as u64 + dropped, sent as u64);
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB");
}

fn messages_on_other_streams_and_after_the_end_are_ignored() {
    let (shim, mut client) = start();
    exec(&mut client, 1, "repeat");
    let expected = (String::new(), 0, Ending::Exited { code: 5 });
    assert_eq!(client.finish(1), expected);
    assert_serves(&shim);
    let mut endings = client.list().into_iter().map(|execution| execution.ending);
    assert!(endings.any(|ending| ending == Some(Ending::Exited { code: 5 })));
}

fn executions_with_long_messages_are_listed() {
    let (_shim, mut client) = start();
    for stream in 1..=70 {
        exec(&mut client, stream, "explain");
        client.finish(stream);
    }
    let listed = client.list();
    assert!(listed.len() >= 64, "{}", listed.len());
    for execution in listed {
        let Some(Ending::Failed { message, .. }) = execution.ending else {
            panic!("{execution:?}");
        };
        assert_eq!(message.len(), 256);
    }
}

fn a_request_that_takes_long_delays_no_other_client() {
    let (shim, mut client) = start();
    let request = Value::Null;
    client.send(7, HostMessage::Call { request });
    support::eventually("the engine has the request", || {
        shim.path("called").exists()
    });
    assert_serves(&shim);
    assert_eq!(client.list().len(), 1);
    fs::write(shim.path("respond"), "").unwrap();
    let result = Value::Bool(true);
    assert_eq!(client.response(7), PayloadMessage::CallResult { result });
}

fn input_of_a_client_that_has_left_waits_for_a_guest_that_does_not_read() {
    let (shim, mut client) = start();
    fill(&mut client);
    client.send(1, HostMessage::CloseStdin);
    drop(client);
    wait_until_hub_is_idle(&shim);
    fs::write(shim.path("continue"), "").unwrap();
    support::eventually("the guest gets the last frame", || {
        shim.path("closed").exists()
    });
}

fn a_request_that_waits_for_another_client_to_leave_is_handled_although_the_guest_ends() {
    let (shim, mut first) = start();
    let listener = UnixListener::bind(shim.path(GUEST_SOCKET)).unwrap();
    exec(&mut first, 1, "run");
    let (port, _) = listener.accept().unwrap();
    let mut guest = Guest::new(port);
    guest.send(1, started());
    assert!(matches!(first.response(1), PayloadMessage::Started { .. }));
    let mut second = Client::connect(&shim);
    assert_eq!(second.list().len(), 1);

    // The shim gets the hang-ups of the client and of the guest, and the request, at once.
    shim.stop();
    // A process that another test forks can have a copy of the descriptor.
    first.shut_down();
    let (id, output) = ("exec-1".to_owned(), true);
    second.send(7, HostMessage::Attach { id, output });
    drop(guest);
    shim.signal(Signal::SIGCONT);
    let (_, _, ending) = second.finish(7);
    assert!(matches!(ending, Ending::Failed { .. }), "{ending:?}");
}

/// Sends more than the hub and its socket to the guest hold. The rest is in the socket of the client.
fn fill(client: &mut Client) {
    const FRAMES: usize = INITIAL_CREDIT as usize / MAX_BODY;
    exec(client, 1, "stall");
    assert_eq!(client.response(1), started_with_credit(INITIAL_CREDIT));
    for (stream, frames) in [(1, FRAMES), (2, FRAMES), (3, FRAMES / 2)] {
        if stream > 1 {
            exec(client, stream, "stall");
        }
        let input = HostMessage::Stdin(vec![0; MAX_BODY]);
        client.send_repeated(frames, stream, input).unwrap();
    }
}

fn a_guest_that_does_not_read_delays_only_requests_to_it() {
    let (shim, mut client) = start();
    fill(&mut client);
    wait_until_hub_is_idle(&shim);
    let mut other = Client::connect(&shim);
    other.send(0, HostMessage::Ping { token: 1 });
    assert_eq!(other.response(0), PayloadMessage::Pong { token: 1 });
    assert!(!other.list().is_empty());
    fs::write(shim.path("respond"), "").unwrap();
    // The thread that resumes a payload has it.
    let request = Value::Null;
    other.send(7, HostMessage::Call { request });
    let result = Value::Bool(true);
    assert_eq!(other.response(7), PayloadMessage::CallResult { result });
    let id = "exec-1".to_owned();
    other.send(8, HostMessage::Remove { id });
    assert_eq!(other.response(8), PayloadMessage::Done);

    // A request to the guest waits, and so does what follows it: the hub does not keep any number of them.
    let id = "exec-2".to_owned();
    other.send(9, HostMessage::Attach { id, output: false });
    assert!(matches!(other.response(9), PayloadMessage::Started { .. }));
    other.send(9, HostMessage::signal(10));
    other.send(0, HostMessage::Ping { token: 2 });
    let mut third = Client::connect(&shim);
    for _ in 0..3 {
        third.list();
    }
    assert!(!other.has_response());
    fs::write(shim.path("continue"), "").unwrap();
    assert_eq!(other.response(0), PayloadMessage::Pong { token: 2 });
}

fn what_waits_for_a_guest_that_hangs_up_gets_an_error() {
    let (shim, mut client) = start();
    let mut other = Client::connect(&shim);
    let request = Value::Null;
    other.send(7, HostMessage::Call { request });
    fill(&mut client);
    wait_until_hub_is_idle(&shim);
    exec(&mut other, 8, "well-behaved");
    wait_until_hub_is_idle(&shim);
    fs::write(shim.path("leave"), "").unwrap();
    let mut failed = Vec::new();
    while failed.len() < 2 {
        let Frame { stream, message } = other.receive();
        let PayloadMessage::Error(error) = message else {
            panic!("{message:?}");
        };
        assert_eq!(error.message, "the payload has ended");
        failed.push(stream);
    }
    failed.sort();
    assert_eq!(failed, [7, 8]);
}

fn a_request_to_the_engine_that_waits_when_the_payload_ends_gets_an_error() {
    let (shim, mut client) = start();
    let request = Value::Null;
    client.send(7, HostMessage::Call { request });
    support::eventually("the call", || shim.path("called").exists());
    fs::write(shim.path("end"), "").unwrap();
    let PayloadMessage::Error(error) = client.response(7) else {
        panic!("not an error");
    };
    assert_eq!(error.message, "the payload has ended");
}

fn a_client_that_attaches_before_a_command_fails_to_start_learns_its_end() {
    let (shim, mut first) = start();
    let listener = UnixListener::bind(shim.path(GUEST_SOCKET)).unwrap();
    let spec = ExecSpec::new("exec-1", ["run"]);
    first.send(1, HostMessage::Start(spec));
    let (port, _) = listener.accept().unwrap();
    let mut guest = Guest::new(port);
    let mut second = Client::connect(&shim);
    let (id, output) = ("exec-1".to_owned(), false);
    second.send(7, HostMessage::Attach { id, output });
    assert!(matches!(second.response(7), PayloadMessage::Started { .. }));
    let ending = Ending::failed(FailureKind::NotFound, "no such program");
    guest.send(1, PayloadMessage::Exited { ending });
    for (client, stream) in [(&mut first, 1), (&mut second, 7)] {
        let response = client.response(stream);
        assert!(
            matches!(response, PayloadMessage::Exited { .. }),
            "{response:?}"
        );
        // And nothing else.
        client.send(0, HostMessage::Ping { token: 1 });
        assert_eq!(client.receive().message, PayloadMessage::Pong { token: 1 });
    }
}

fn a_panic_of_the_payload_in_a_request_ends_the_shim_with_a_record() {
    let request = Value::Null;
    let spec = ExecSpec::new("exec-1", ["well-behaved"]);
    for message in [HostMessage::Call { request }, HostMessage::Exec(spec)] {
        let (mut shim, mut client) = start();
        fs::write(shim.path("panic"), "").unwrap();
        client.send(1, message);
        assert_eq!(shim.wait().code(), Some(101));
        let Ending::Panicked { message, .. } = shim.record().ending else {
            panic!("{:?}", shim.record());
        };
        assert_eq!(message, "this panic ends the shim");
    }
}

/// Waits until the hub has noticed that a client has left, and waits for something else.
fn wait_until_hub_is_idle(shim: &Shim) {
    let threads = fs::read_dir(format!("/proc/{}/task", shim.child.id())).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap().path());
    let is_hub = |thread: &PathBuf| fs::read(thread.join("comm")).unwrap() == b"shim-hub\n";
    let status = threads.find(is_hub).unwrap().join("status");
    let (mut before, mut unchanged) = (Vec::new(), 0);
    support::eventually("the hub is idle", || {
        // Has the number of context switches.
        let now = fs::read(&status).unwrap();
        unchanged = if now == before { unchanged + 1 } else { 0 };
        before = now;
        unchanged > 20
    });
}

fn main() {
    vmm_shim::Shim::new().engine(Hostile).run_if_shim();
    run![
        executions_with_long_messages_are_listed,
        a_request_that_takes_long_delays_no_other_client,
        bytes_that_are_not_frames_are_skipped,
        output_beyond_the_credit_is_dropped_and_takes_no_memory,
        messages_on_other_streams_and_after_the_end_are_ignored,
        input_of_a_client_that_has_left_waits_for_a_guest_that_does_not_read,
        a_request_that_waits_for_another_client_to_leave_is_handled_although_the_guest_ends,
        a_guest_that_does_not_read_delays_only_requests_to_it,
        what_waits_for_a_guest_that_hangs_up_gets_an_error,
        a_request_to_the_engine_that_waits_when_the_payload_ends_gets_an_error,
        a_client_that_attaches_before_a_command_fails_to_start_learns_its_end,
        a_panic_of_the_payload_in_a_request_ends_the_shim_with_a_record,
    ];
}
