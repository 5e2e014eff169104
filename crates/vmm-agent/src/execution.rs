use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, write};
use pidfd_spawn::{Child, Command, Stdio};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::ioctl_fionread;
use vmm_protocol::frames::{ExecSpec, INITIAL_CREDIT, PayloadMessage, TerminalSize, Window};
use vmm_protocol::{Ending, FailureKind};

use crate::backend::Backend;
use crate::children::{Children, NotSpawned};
use crate::terminal;
use crate::{HostConnection, send};

/// More than the kernel keeps of what is written to a terminal, in bytes.
const TERMINAL_CAPACITY: usize = 64 << 10;

/// How many bytes are read from an output at once.
const READ_SIZE: usize = 16 << 10;

/// A command that runs, or that has ended and whose output is not sent yet.
#[derive(Debug)]
pub(crate) struct Execution {
    child: Child,
    stdin: Option<OwnedFd>,
    /// What the command has not read yet; at most the credit of the stream.
    input: VecDeque<u8>,
    is_input_complete: bool,
    /// The number of bytes that the command has read since the last credit.
    consumed: u32,
    /// Stdout and stderr, in the order in which they are read next.
    outputs: [Output; 2],
    window: Window,
    is_terminal: bool,
    is_killed: bool,
    /// The number of processes that the kernel had killed for lack of memory before the start.
    oom_kills_before: u64,
    deadline: Option<Instant>,
    ending: Option<Ending>,
    /// Whether the host knows the ending, and not yet all output.
    is_ending_sent: bool,
}

/// The stdout or stderr of a command.
#[derive(Debug)]
struct Output {
    /// `None` once all of it has been read.
    fd: Option<OwnedFd>,
    /// After the end of the command, how much of it is left to read: another process may hold the other
    /// end for longer, and write to it.
    left_after_end: Option<usize>,
    message: fn(Vec<u8>) -> PayloadMessage,
}

impl Execution {
    /// Starts the command in a session of its own. The `spec` has its streams.
    pub(crate) fn start(
        mut command: Command,
        spec: &ExecSpec,
        backend: &impl Backend,
        children: &Children,
    ) -> Result<Self, Ending> {
        command.setsid(true);
        // The pipe of both outputs.
        let mut merged = None;
        let master = if let Some(size) = spec.terminal {
            let (master, slave) = terminal::open(size).map_err(terminal_error)?;
            let second = || slave.try_clone();
            command.stdin(second().map_err(terminal_error)?);
            command.stdout(second().map_err(terminal_error)?);
            command.stderr(slave).controlling_terminal(true);
            Some(master)
        } else {
            let stdin = if spec.stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            };
            command.stdin(stdin);
            if spec.merge_output {
                let (reader, writer) = io::pipe().map_err(pipe_error)?;
                let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
                command.stdout(writer.try_clone().map_err(pipe_error)?);
                command.stderr(writer);
                merged = Some(reader);
            } else {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            None
        };
        let oom_kills_before = backend.oom_kills();
        let spawned = children.spawn(|| backend.spawn(spec, &mut command));
        let mut child = spawned.map_err(|error| match error {
            NotSpawned::Closed => Ending::failed(FailureKind::Engine, "the payload has ended"),
            NotSpawned::Paused => {
                Ending::failed(FailureKind::InUse, "the box is paused; resume it first")
            }
            NotSpawned::Failed(ending) => ending,
        })?;
        let (stdin, stdout) = match &master {
            Some(master) => (master.try_clone().ok(), master.try_clone().ok()),
            None => (
                child.stdin.take().map(OwnedFd::from),
                merged.or_else(|| child.stdout.take().map(OwnedFd::from)),
            ),
        };
        let stderr = child.stderr.take().map(OwnedFd::from);
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            // Succeeds for a pipe or terminal that was just created.
            let _ = fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK));
        }
        Ok(Self {
            child,
            stdin,
            input: VecDeque::new(),
            is_input_complete: false,
            consumed: 0,
            outputs: [
                Output::new(stdout, PayloadMessage::Stdout),
                Output::new(stderr, PayloadMessage::Stderr),
            ],
            window: Window::new(),
            is_terminal: master.is_some(),
            is_killed: false,
            oom_kills_before,
            deadline: spec
                .timeout_millis
                .and_then(|millis| Instant::now().checked_add(Duration::from_millis(millis))),
            ending: None,
            is_ending_sent: false,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Adds data for the stdin. Returns false if the host has sent more than its credit.
    pub(crate) fn add_input(&mut self, data: &[u8]) -> bool {
        if self.input.len() + data.len() > INITIAL_CREDIT as usize {
            return false;
        }
        if self.stdin.is_some() && !self.is_input_complete {
            self.input.extend(data);
        } else {
            self.consumed = self.consumed.saturating_add(length(data));
        }
        true
    }

    pub(crate) fn close_input(&mut self) {
        if self.is_terminal && !self.is_input_complete {
            // The end of a terminal's input is a character, termios(3).
            self.input.push_back(END_OF_TRANSMISSION);
        }
        self.is_input_complete = true;
    }

    pub(crate) fn grant(&mut self, bytes: u32) {
        self.window.grant(bytes);
    }

    pub(crate) fn resize(&self, size: TerminalSize) {
        let master = self.outputs.iter().find_map(|output| output.fd.as_ref());
        if let (true, Some(master)) = (self.is_terminal, master) {
            let _ = terminal::resize(master, size);
        }
    }

    /// Sends a signal to the process group of the command, unless the command has been reaped.
    pub(crate) fn signal(&mut self, signal: i32, children: &Children) {
        self.is_killed |= signal == SIGKILL;
        children.if_running(self.pid(), || match Signal::try_from(signal) {
            Ok(signal) => drop(killpg(Pid::from_raw(self.pid().cast_signed()), signal)),
            // A real-time signal, which nix cannot send.
            Err(_) => drop(self.child.send_signal(signal)),
        });
    }

    /// Sends a signal to the command, unless it has been reaped.
    pub(crate) fn signal_command(&mut self, signal: i32, children: &Children) {
        self.is_killed |= signal == SIGKILL;
        children.if_running(self.pid(), || drop(self.child.send_signal(signal)));
    }

    /// Kills the command if its time is over. Returns true then.
    pub(crate) fn enforce_deadline(&mut self, now: Instant, children: &Children) -> bool {
        let is_over = self.deadline.is_some_and(|deadline| deadline <= now);
        if is_over {
            self.deadline = None;
            self.signal(SIGKILL, children);
        }
        is_over
    }

    /// Stores how the command ended.
    pub(crate) fn set_status(&mut self, status: ExitStatus, backend: &impl Backend) {
        self.stdin = None;
        for output in &mut self.outputs {
            output.end(self.is_terminal);
        }
        self.ending = Some(match status.signal() {
            Some(SIGKILL)
                if !self.is_killed
                    && backend.has_run_out_of_memory(self.pid(), self.oom_kills_before) =>
            {
                Ending::OutOfMemory
            }
            Some(signal) => Ending::Signaled { signal },
            None => Ending::Exited {
                code: status.code().unwrap_or(255),
            },
        });
    }

    /// The descriptor that takes input, while there is some.
    pub(crate) fn wants_write(&self) -> Option<&OwnedFd> {
        self.stdin.as_ref().filter(|_| !self.input.is_empty())
    }

    /// The descriptors whose output may be sent.
    pub(crate) fn wants_read(&self) -> impl Iterator<Item = &OwnedFd> {
        let may_send = self.window.bytes() > 0;
        let open = self.outputs.iter().filter_map(|output| output.fd.as_ref());
        open.filter(move |_| may_send)
    }

    /// Moves input, and at most [`READ_SIZE`] bytes of each output, between the command and the
    /// connection, as far as that does not block. Returns whether it has sent output.
    pub(crate) fn advance(&mut self, stream: u32, connection: &mut HostConnection) -> bool {
        self.write_input();
        if self.consumed > 0 && (self.input.is_empty() || self.consumed >= INITIAL_CREDIT / 4) {
            let bytes = std::mem::take(&mut self.consumed);
            send(connection, stream, PayloadMessage::Credit { bytes });
        }
        let mut has_sent = false;
        for output in &mut self.outputs {
            if self.window.bytes() == 0 || !connection.has_room() {
                break;
            }
            if let Some(message) = output.read(&mut self.window) {
                send(connection, stream, message);
                has_sent = true;
            }
        }
        if has_sent {
            // The other output gets the credit first next time.
            self.outputs.reverse();
        }
        has_sent
    }

    /// Returns the message with how the command ended: `Exited` once all its output has been sent, and before,
    /// if output is left, `Ended` once.
    pub(crate) fn next_ending(&mut self) -> Option<PayloadMessage> {
        let ending = self.ending.clone()?;
        if self.outputs.iter().all(|output| output.fd.is_none()) {
            return Some(PayloadMessage::Exited { ending });
        }
        let is_sent = std::mem::replace(&mut self.is_ending_sent, true);
        (!is_sent).then_some(PayloadMessage::Ended { ending })
    }

    fn write_input(&mut self) {
        while let (Some(stdin), false) = (&self.stdin, self.input.is_empty()) {
            match write(stdin, self.input.as_slices().0) {
                Ok(count) => {
                    self.consumed = self
                        .consumed
                        .saturating_add(length(&self.input.as_slices().0[..count]));
                    self.input.drain(..count);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    // The command has closed its stdin.
                    self.consumed = self
                        .consumed
                        .saturating_add(length(self.input.make_contiguous()));
                    self.input.clear();
                    self.stdin = None;
                }
            }
        }
        if self.is_input_complete && self.input.is_empty() && !self.is_terminal {
            self.stdin = None;
        }
    }
}

const END_OF_TRANSMISSION: u8 = 4;

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

fn terminal_error(error: io::Error) -> Ending {
    let message = format!("cannot open a terminal: {error}");
    Ending::failed(FailureKind::Engine, message)
}

fn pipe_error(error: io::Error) -> Ending {
    let message = format!("cannot create a pipe: {error}");
    Ending::failed(FailureKind::Engine, message)
}

impl Output {
    fn new(fd: Option<OwnedFd>, message: fn(Vec<u8>) -> PayloadMessage) -> Self {
        Self {
            fd,
            left_after_end: None,
            message,
        }
    }

    /// Handles the end of the command, which has written all of its output.
    fn end(&mut self, is_terminal: bool) {
        let left = self.fd.as_ref().map_or(0, |fd| {
            if is_terminal {
                // The kernel does not count what it has not processed yet.
                return TERMINAL_CAPACITY;
            }
            // Also of a pipe that the command has enlarged, fcntl(2).
            let pending = ioctl_fionread(fd).unwrap_or_default();
            usize::try_from(pending).unwrap_or(usize::MAX)
        });
        self.left_after_end = Some(left);
        self.close_if_read();
    }

    /// Closes the output if all that the command has written is read.
    fn close_if_read(&mut self) {
        if self.left_after_end == Some(0) {
            self.fd = None;
        }
    }

    /// Reads what the window allows. Closes the output at its end, or, after the end of the command,
    /// when no output of it is left.
    fn read(&mut self, window: &mut Window) -> Option<PayloadMessage> {
        let fd = self.fd.as_ref()?;
        let size = READ_SIZE.min(window.bytes());
        let size = self.left_after_end.map_or(size, |left| size.min(left));
        // Not cleared: most reads find little or nothing.
        let mut buffer = Box::<[u8]>::new_uninit_slice(size);
        let data = loop {
            match rustix::io::read(fd, &mut *buffer) {
                Ok((data, _)) if !data.is_empty() => break data,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if self.left_after_end.is_none() => return None,
                // The end: of a terminal, EIO.
                _ => {
                    self.fd = None;
                    return None;
                }
            }
        };
        let count = window.take(data.len());
        let message = (self.message)(data[..count].to_vec());
        if let Some(left) = &mut self.left_after_end {
            *left = left.saturating_sub(count);
        }
        self.close_if_read();
        Some(message)
    }
}
