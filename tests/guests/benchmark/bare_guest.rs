//! A guest without a box.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::libc::SIGKILL;
use pidfd_spawn::{Child, Command, Stdio};
use vmm_protocol::frames::{
    ExecSpec, Frame, FrameReader, HostMessage, PayloadMessage, Strictness, VERSION,
};

/// The descriptors of the monitor and of the agent in QEMU, as its arguments name them.
const QMP_FD: i32 = 3;
const AGENT_FD: i32 = 4;

/// QEMU, started with the arguments that a box gives it.
pub struct BareGuest {
    qemu: Child,
    port: UnixStream,
    reader: FrameReader,
    _monitor: UnixStream,
}

/// Returns the command line of a running QEMU.
pub fn arguments_of(pid: u32) -> Vec<String> {
    let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("QEMU runs");
    let arguments = command_line.split_terminator('\0');
    arguments.map(str::to_owned).collect()
}

impl BareGuest {
    /// Starts QEMU, and waits until the agent is ready.
    pub fn boot(arguments: &[String]) -> Self {
        let (port, port_of_qemu) = UnixStream::pair().expect("a socket");
        let (monitor, monitor_of_qemu) = UnixStream::pair().expect("a socket");
        let qemu = Command::new(&arguments[0])
            .args(&arguments[1..])
            .fd(QMP_FD, OwnedFd::from(monitor_of_qemu))
            .fd(AGENT_FD, OwnedFd::from(port_of_qemu))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .parent_death_signal(SIGKILL)
            .spawn()
            .expect("QEMU");
        let mut guest = Self {
            qemu,
            port,
            reader: FrameReader::new(Strictness::Resynchronize),
            _monitor: monitor,
        };
        guest.send(0, HostMessage::Hello { version: VERSION });
        while !matches!(guest.receive(), PayloadMessage::Ready { .. }) {}
        guest
    }

    /// Returns how long the agent takes to respond to one small frame.
    pub fn ping(&mut self) -> Duration {
        let start = Instant::now();
        self.send(0, HostMessage::Ping { token: 1 });
        while !matches!(self.receive(), PayloadMessage::Pong { .. }) {}
        start.elapsed()
    }

    /// Returns how long a command takes in the guest.
    pub fn exec(&mut self, command: &[&str]) -> Duration {
        let start = Instant::now();
        let spec = ExecSpec::new("exec-1", command.iter().copied());
        self.send(1, HostMessage::Exec(spec));
        while !matches!(self.receive(), PayloadMessage::Exited { .. }) {}
        start.elapsed()
    }

    fn send(&mut self, stream: u32, message: HostMessage) {
        let mut wire = Vec::new();
        let frame = Frame::new(stream, message);
        frame.encode(&mut wire).expect("a frame");
        self.port.write_all(&wire).expect("the port");
    }

    fn receive(&mut self) -> PayloadMessage {
        let mut buffer = [0; 4096];
        loop {
            if let Ok(Some(Frame { message, .. })) = self.reader.next_frame() {
                return message;
            }
            let length = self.port.read(&mut buffer).expect("the port");
            assert!(length > 0, "QEMU has ended");
            self.reader.push(&buffer[..length]);
        }
    }
}

impl Drop for BareGuest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
