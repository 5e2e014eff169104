//! A guest without a box.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::libc::SIGKILL;
use pidfd_spawn::{Child, Command, Stdio};
use vmm_protocol::Ending;
use vmm_protocol::frames::{
    ExecSpec, Frame, FrameReader, HostMessage, PayloadMessage, Strictness, VERSION,
};
use vmm_shim::QemuOptions;

use crate::guest_program;

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

/// How a QEMU was started.
pub struct Invocation {
    arguments: Vec<String>,
    /// The files that the arguments name by their descriptors.
    files: Vec<(i32, File)>,
}

impl Invocation {
    /// Returns that of a running QEMU, which boots a guest with these options.
    pub fn of(pid: u32, guest: &QemuOptions) -> Self {
        let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("QEMU runs");
        let arguments = command_line.split_terminator('\0');
        let arguments: Vec<_> = arguments.map(str::to_owned).collect();
        let numbers = |prefix| {
            let numbers = arguments.iter().filter_map(move |argument| {
                let number = argument.strip_prefix(prefix)?.split(",set=").next();
                number?.parse().ok()
            });
            numbers.collect::<Vec<i32>>()
        };
        let boot_files = [Some(&guest.kernel), guest.initrd.as_ref()];
        let disks = guest.disks.iter().map(|disk| &disk.path);
        let files = numbers("/proc/self/fd/").into_iter().chain(numbers("fd="));
        let files = files.zip(boot_files.into_iter().flatten().chain(disks));
        let open = |(number, path)| (number, File::open(path).expect("a file of the guest"));
        let files = files.map(open).collect();
        Self { arguments, files }
    }
}

impl BareGuest {
    /// Starts QEMU, and waits until the agent is ready.
    pub fn boot(invocation: &Invocation) -> Self {
        let (port, port_of_qemu) = UnixStream::pair().expect("a socket");
        let (monitor, monitor_of_qemu) = UnixStream::pair().expect("a socket");
        let (program, arguments) = invocation.arguments.split_first().expect("a program");
        let mut command = Command::new(program);
        for (number, file) in &invocation.files {
            command.fd(*number, file.try_clone().expect("a descriptor"));
        }
        let qemu = command
            .args(arguments)
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
        self.output(command);
        start.elapsed()
    }

    /// Returns how long a program in the guest takes to run the command, as that program measures it.
    pub fn spawn_in_guest(&mut self, command: &[&str]) -> Duration {
        let output = self.output(&[&[guest_program::PATH], command].concat());
        let micros = String::from_utf8(output).expect("a number");
        Duration::from_micros(micros.trim().parse().expect("a number"))
    }

    /// Runs a command in the guest, and returns what it prints.
    fn output(&mut self, command: &[&str]) -> Vec<u8> {
        let spec = ExecSpec::new("exec-1", command.iter().copied());
        self.send(1, HostMessage::Exec(spec));
        let mut output = Vec::new();
        loop {
            match self.receive() {
                PayloadMessage::Stdout(data) | PayloadMessage::Stderr(data) => output.extend(data),
                PayloadMessage::Exited { ending } => {
                    let printed = String::from_utf8_lossy(&output);
                    assert_eq!(ending, Ending::Exited { code: 0 }, "{printed}");
                    return output;
                }
                _ => {}
            }
        }
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
