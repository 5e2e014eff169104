//! A host at one end of a socket, and a server at the other.

// Each test program uses a part of this module.
#![allow(dead_code)]

pub(crate) mod guest;
mod image;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, Once};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pidfd_spawn::Command;
use rustix::process::{WaitOptions, wait};
use vmm_agent::{Backend, Children, Server};
use vmm_protocol::Ending;
use vmm_protocol::frames::{ExecSpec, Frame, FrameReader, HostMessage, PayloadMessage, Strictness};

/// Runs commands of this machine.
pub(crate) struct Local;

impl Backend for Local {
    fn command(&self, spec: &ExecSpec) -> Result<Command, Ending> {
        let mut command = Command::new(&spec.command[0]);
        command.args(&spec.command[1..]).envs(&spec.env);
        // A test in the background of a shell ignores SIGINT.
        command.reset_ignored_signals(true);
        Ok(command)
    }
}

/// The servers of this process. One thread waits for all children, as in a shim and in a guest.
static SERVERS: Mutex<Vec<Arc<Children>>> = Mutex::new(Vec::new());

fn children_with_waiter() -> Arc<Children> {
    static WAITER: Once = Once::new();
    let children = Arc::new(Children::new().unwrap());
    SERVERS.lock().unwrap().push(Arc::clone(&children));
    WAITER.call_once(|| drop(thread::spawn(wait_for_children)));
    children
}

fn wait_for_children() {
    loop {
        let Ok(Some((pid, status))) = wait(WaitOptions::empty()) else {
            // No child yet.
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let pid = pid.as_raw_pid().cast_unsigned();
        let status = ExitStatus::from_raw(status.as_raw());
        let servers = SERVERS.lock().unwrap();
        servers.iter().any(|children| children.report(pid, status));
    }
}

pub(crate) struct Host {
    stream: UnixStream,
    reader: FrameReader,
    server: Option<JoinHandle<Server<Local>>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::connect(Server::new(Local, children_with_waiter()))
    }

    pub(crate) fn connect(mut server: Server<Local>) -> Self {
        let (stream, other) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            server
                .serve(OwnedFd::from(other), Strictness::Strict)
                .unwrap();
            server
        });
        Self {
            server: Some(server),
            ..Self::over(stream)
        }
    }

    /// Speaks to an agent in another process.
    pub(crate) fn over(stream: UnixStream) -> Self {
        let timeout = Some(Duration::from_secs(120));
        stream.set_read_timeout(timeout).unwrap();
        Self {
            stream,
            reader: FrameReader::new(Strictness::Strict),
            server: None,
        }
    }

    /// Sends bytes that are not a frame.
    pub(crate) fn send_garbage(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn has_hung_up(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 16]), Ok(0))
    }

    /// Hangs up, and returns the server.
    pub(crate) fn hang_up(mut self) -> Server<Local> {
        self.stream.shutdown(Shutdown::Both).unwrap();
        self.server.take().unwrap().join().unwrap()
    }

    pub(crate) fn send(&mut self, stream: u32, message: HostMessage) {
        let mut wire = Vec::new();
        Frame::new(stream, message).encode(&mut wire).unwrap();
        self.stream.write_all(&wire).unwrap();
    }

    pub(crate) fn exec(&mut self, stream: u32, command: &[&str]) {
        let spec = ExecSpec::new(format!("exec-{stream}"), command.iter().copied());
        self.send(stream, HostMessage::Exec(spec));
    }

    pub(crate) fn receive(&mut self) -> Frame<PayloadMessage> {
        let mut buffer = [0; 64 << 10];
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                return frame;
            }
            let length = match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result.unwrap(),
            };
            assert!(length > 0, "the server has hung up");
            self.reader.push(&buffer[..length]);
        }
    }

    /// Receives until the execution has ended. Grants credit for all of its output.
    pub(crate) fn finish(&mut self, stream: u32) -> Outcome {
        let mut outcome = Outcome::default();
        while outcome.ending.is_none() {
            let frame = self.receive();
            assert_eq!(frame.stream, stream, "{frame:?}");
            match frame.message {
                PayloadMessage::Stdout(data) => {
                    self.grant(stream, data.len());
                    outcome.stdout.extend(data);
                }
                PayloadMessage::Stderr(data) => {
                    self.grant(stream, data.len());
                    outcome.stderr.extend(data);
                }
                PayloadMessage::Exited { ending } => outcome.ending = Some(ending),
                PayloadMessage::Started { .. }
                | PayloadMessage::Credit { .. }
                | PayloadMessage::Ended { .. } => {}
                message => panic!("{message:?}"),
            }
        }
        outcome
    }

    pub(crate) fn grant(&mut self, stream: u32, bytes: usize) {
        let bytes = bytes.try_into().unwrap();
        self.send(stream, HostMessage::Credit { bytes });
    }

    pub(crate) fn run(&mut self, stream: u32, command: &[&str]) -> Outcome {
        self.exec(stream, command);
        self.finish(stream)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) ending: Option<Ending>,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn ending(&self) -> &Ending {
        self.ending.as_ref().unwrap()
    }
}
