use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pidfd_spawn::Command;
use rustix::event::{PollFd, PollFlags};
use vmm_protocol::frames::{
    ExecSpec, Frame, FrameError, HostMessage, INITIAL_CREDIT, PayloadMessage, RequestError,
    RequestErrorKind, Strictness, Turns, VERSION,
};
use vmm_protocol::poll::{is_readable, wait_until};

use crate::backend::Backend;
use crate::children::Children;
use crate::execution::Execution;
use crate::{HostConnection, send};

/// Serves one host: starts executions, and moves their input and output.
///
/// The server has one thread, never blocks on a command, and holds at most the credit of each stream
/// in memory.
#[derive(Debug)]
pub struct Server<B> {
    backend: B,
    children: Arc<Children>,
    /// By stream.
    executions: BTreeMap<u32, Execution>,
    turns: Turns,
}

impl<B: Backend> Server<B> {
    /// Creates a server. The thread that waits for children reports them to `children`.
    pub fn new(backend: B, children: Arc<Children>) -> Self {
        Self {
            backend,
            children,
            executions: BTreeMap::new(),
            turns: Turns::default(),
        }
    }

    /// Serves the host at the other end of a socket or serial port. Returns when the host hangs up:
    /// executions then go on, and the next call serves them. Also returns after
    /// [`Children::close`], when the last execution has ended.
    ///
    /// # Errors
    ///
    /// If the connection cannot be read or written, or the host sends what is not a frame over a
    /// strict connection.
    pub fn serve(&mut self, connection: OwnedFd, strictness: Strictness) -> io::Result<()> {
        let mut connection = HostConnection::new(connection, strictness)?;
        loop {
            self.receive(&mut connection)?;
            self.advance(&mut connection);
            connection.flush()?;
            let is_done = self.executions.is_empty() && !connection.has_pending();
            if connection.is_hung_up() || (is_done && self.children.is_closed()) {
                return Ok(());
            }
            if self.wait(&connection)? {
                connection.fill()?;
            }
        }
    }

    /// Blocks until there is something to do. Returns whether the connection can be read.
    fn wait(&self, connection: &HostConnection) -> io::Result<bool> {
        let wake = self.children.wake_fd();
        let mut fds = vec![connection.poll_fd(true), PollFd::new(&wake, PollFlags::IN)];
        for execution in self.executions.values() {
            let inputs = execution.wants_write().into_iter();
            fds.extend(inputs.map(|fd| PollFd::new(fd, PollFlags::OUT)));
            if connection.has_room() {
                let outputs = execution.wants_read();
                fds.extend(outputs.map(|fd| PollFd::new(fd, PollFlags::IN)));
            }
        }
        let executions = self.executions.values();
        wait_until(&mut fds, executions.filter_map(Execution::deadline).min())?;
        if is_readable(&fds[1]) {
            self.children.clear_wake();
        }
        Ok(is_readable(&fds[0]))
    }

    fn receive(&mut self, connection: &mut HostConnection) -> io::Result<()> {
        loop {
            match connection.next_frame() {
                Ok(Some(frame)) => self.handle(frame, connection),
                Ok(None) => return Ok(()),
                Err(error @ FrameError::Header) => return Err(io::Error::other(error)),
                Err(error) => {
                    let kind = RequestErrorKind::Invalid;
                    send_error(connection, 0, RequestError::new(kind, error.to_string()));
                }
            }
        }
    }

    fn handle(&mut self, frame: Frame<HostMessage>, connection: &mut HostConnection) {
        let stream = frame.stream;
        match frame.message {
            HostMessage::Hello { .. } => send(
                connection,
                stream,
                PayloadMessage::Ready {
                    version: VERSION,
                    boot: self.backend.boot_phases(),
                },
            ),
            HostMessage::Ping { token } => send(connection, stream, PayloadMessage::Pong { token }),
            HostMessage::Exec(spec) => match self.backend.command(&spec) {
                Ok(command) => self.start(stream, command, &spec, connection),
                Err(ending) => send(connection, stream, PayloadMessage::Exited { ending }),
            },
            HostMessage::Put(spec) => {
                let command = self.backend.put_command(&spec);
                self.start_transfer(stream, command, true, connection);
            }
            HostMessage::Get(spec) => {
                let command = self.backend.get_command(&spec);
                self.start_transfer(stream, command, false, connection);
            }
            HostMessage::Stats => match self.backend.stats() {
                Ok(stats) => send(connection, stream, PayloadMessage::Stats(stats)),
                Err(error) => send_error(connection, stream, error),
            },
            HostMessage::ConfigureNetwork(network) => {
                respond(connection, stream, self.backend.configure_network(&network));
            }
            HostMessage::Shutdown { grace_millis } => {
                let grace = Duration::from_millis(grace_millis);
                respond(connection, stream, self.backend.shut_down(grace));
            }
            message => self.handle_in_stream(stream, message, connection),
        }
    }

    /// Handles a message that belongs to an execution, or that is not supported.
    fn handle_in_stream(
        &mut self,
        stream: u32,
        message: HostMessage,
        connection: &mut HostConnection,
    ) {
        let execution = self.executions.get_mut(&stream);
        match (message, execution) {
            (HostMessage::Stdin(data), Some(execution)) => {
                if !execution.add_input(&data) {
                    let message = "the host has sent more input than its credit";
                    let error = RequestError::new(RequestErrorKind::Invalid, message);
                    send_error(connection, stream, error);
                    execution.signal(nix::libc::SIGKILL, &self.children);
                }
            }
            (HostMessage::CloseStdin, Some(execution)) => execution.close_input(),
            (
                HostMessage::Signal {
                    signal,
                    only_command,
                },
                Some(execution),
            ) if only_command => execution.signal_command(signal, &self.children),
            (HostMessage::Signal { signal, .. }, Some(execution)) => {
                execution.signal(signal, &self.children);
            }
            (HostMessage::Resize(size), Some(execution)) => execution.resize(size),
            (HostMessage::Credit { bytes }, Some(execution)) => execution.grant(bytes),
            // The execution has ended meanwhile.
            (
                HostMessage::Stdin(_)
                | HostMessage::CloseStdin
                | HostMessage::Signal { .. }
                | HostMessage::Resize(_)
                | HostMessage::Credit { .. },
                None,
            ) => {}
            _ => send_error(
                connection,
                stream,
                RequestError::unsupported("of this type"),
            ),
        }
    }

    /// Starts a command whose stdin or stdout is a tar stream.
    fn start_transfer(
        &mut self,
        stream: u32,
        command: Result<Command, RequestError>,
        stdin: bool,
        connection: &mut HostConnection,
    ) {
        let mut spec = ExecSpec::default();
        spec.stdin = stdin;
        match command {
            Ok(command) => self.start(stream, command, &spec, connection),
            Err(error) => send_error(connection, stream, error),
        }
    }

    fn start(
        &mut self,
        stream: u32,
        command: Command,
        spec: &ExecSpec,
        connection: &mut HostConnection,
    ) {
        if self.children.is_closed() {
            let error = RequestError::new(RequestErrorKind::Failed, "the payload has ended");
            return send_error(connection, stream, error);
        }
        if self.executions.contains_key(&stream) {
            let message = format!("stream {stream} has an execution already");
            let error = RequestError::new(RequestErrorKind::Invalid, message);
            return send_error(connection, stream, error);
        }
        match Execution::start(command, spec, &self.backend, &self.children) {
            Ok(execution) => {
                let pid = execution.pid();
                self.executions.insert(stream, execution);
                let input_credit = INITIAL_CREDIT;
                send(
                    connection,
                    stream,
                    PayloadMessage::Started { pid, input_credit },
                );
            }
            Err(ending) => send(connection, stream, PayloadMessage::Exited { ending }),
        }
    }

    /// Moves the data of all executions, and removes those that have ended.
    fn advance(&mut self, connection: &mut HostConnection) {
        let now = Instant::now();
        for execution in self.executions.values_mut() {
            execution.enforce_deadline(now, &self.children);
            if let Some(status) = self.children.take(execution.pid()) {
                execution.set_status(status, &self.backend);
            }
        }
        // A part of each in turn: none fills the connection alone.
        let order = self.turns.order(&self.executions);
        let mut has_sent = true;
        while std::mem::take(&mut has_sent) {
            for stream in &order {
                if let Some(execution) = self.executions.get_mut(stream) {
                    has_sent |= execution.advance(*stream, connection);
                }
            }
        }
        self.executions.retain(|stream, execution| {
            let Some(message) = execution.next_ending() else {
                return true;
            };
            let is_over = matches!(message, PayloadMessage::Exited { .. });
            send(connection, *stream, message);
            !is_over
        });
    }
}

fn respond(connection: &mut HostConnection, stream: u32, result: Result<(), RequestError>) {
    match result {
        Ok(()) => send(connection, stream, PayloadMessage::Done),
        Err(error) => send_error(connection, stream, error),
    }
}

fn send_error(connection: &mut HostConnection, stream: u32, error: RequestError) {
    send(connection, stream, PayloadMessage::Error(error));
}
