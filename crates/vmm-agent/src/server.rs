use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_protocol::frames::{
    ExecSpec, Frame, FrameError, HostMessage, PayloadMessage, RequestErrorKind, Strictness, VERSION,
};

use crate::backend::{Backend, RequestError};
use crate::children::Children;
use crate::connection::Connection;
use crate::execution::Execution;

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
}

impl<B: Backend> Server<B> {
    /// Creates a server. The thread that waits for children reports them to `children`.
    pub fn new(backend: B, children: Arc<Children>) -> Self {
        Self {
            backend,
            children,
            executions: BTreeMap::new(),
        }
    }

    /// Serves the host at the other end of a socket or serial port. Returns when the host hangs up.
    /// Executions then go on; the next call serves them.
    ///
    /// # Errors
    ///
    /// If the connection cannot be read or written, or the host sends what is not a frame over a
    /// strict connection.
    pub fn serve(&mut self, connection: OwnedFd, strictness: Strictness) -> io::Result<()> {
        let mut connection = Connection::new(connection, strictness)?;
        loop {
            self.receive(&mut connection)?;
            self.advance(&mut connection);
            connection.flush()?;
            if connection.is_hung_up() {
                return Ok(());
            }
            self.wait(&connection)?;
            self.children.clear_wake();
            connection.fill()?;
        }
    }

    /// Blocks until there is something to do.
    fn wait(&self, connection: &Connection) -> io::Result<()> {
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, connection.has_pending());
        let mut fds = vec![
            PollFd::new(connection.as_fd(), events),
            PollFd::new(self.children.wake_fd(), PollFlags::POLLIN),
        ];
        for execution in self.executions.values() {
            let inputs = execution.wants_write().into_iter();
            fds.extend(inputs.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
            if connection.has_room() {
                let outputs = execution.wants_read();
                fds.extend(outputs.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            }
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the time until the next deadline of an execution.
    fn timeout(&self) -> PollTimeout {
        let deadline = self
            .executions
            .values()
            .filter_map(Execution::deadline)
            .min();
        deadline.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that the deadline is over when the poll returns.
            let left = deadline
                .saturating_duration_since(Instant::now())
                .as_millis()
                + 1;
            i32::try_from(left)
                .unwrap_or(i32::MAX)
                .try_into()
                .unwrap_or(PollTimeout::MAX)
        })
    }

    fn receive(&mut self, connection: &mut Connection) -> io::Result<()> {
        loop {
            match connection.next_frame() {
                Ok(Some(frame)) => self.handle(frame, connection),
                Ok(None) => return Ok(()),
                Err(error @ FrameError::Header) => return Err(io::Error::other(error)),
                Err(error) => {
                    let error = RequestError {
                        kind: RequestErrorKind::Invalid,
                        message: error.to_string(),
                    };
                    send_error(connection, 0, error);
                }
            }
        }
    }

    fn handle(&mut self, frame: Frame<HostMessage>, connection: &mut Connection) {
        let stream = frame.stream;
        match frame.message {
            HostMessage::Hello { .. } => connection.send(
                stream,
                PayloadMessage::Ready {
                    version: VERSION,
                    boot: Vec::new(),
                },
            ),
            HostMessage::Ping { token } => connection.send(stream, PayloadMessage::Pong { token }),
            HostMessage::Exec(spec) => self.start(stream, &spec, connection),
            HostMessage::Pause => respond(connection, stream, self.backend.pause()),
            HostMessage::Resume => respond(connection, stream, self.backend.resume()),
            message => self.handle_in_stream(stream, message, connection),
        }
    }

    /// Handles a message that belongs to an execution, or that is not supported.
    fn handle_in_stream(&mut self, stream: u32, message: HostMessage, connection: &mut Connection) {
        let execution = self.executions.get_mut(&stream);
        match (message, execution) {
            (HostMessage::Stdin(data), Some(execution)) => {
                if !execution.add_input(&data) {
                    let message = "the host has sent more input than its credit".to_owned();
                    let kind = RequestErrorKind::Invalid;
                    send_error(connection, stream, RequestError { kind, message });
                    execution.signal(nix::libc::SIGKILL, &self.children);
                }
            }
            (HostMessage::CloseStdin, Some(execution)) => execution.close_input(),
            (HostMessage::Signal { signal }, Some(execution)) => {
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
            (HostMessage::Put { .. } | HostMessage::Get { .. }, _) => {
                send_error(
                    connection,
                    stream,
                    RequestError::unsupported("file transfer"),
                );
            }
            _ => send_error(
                connection,
                stream,
                RequestError::unsupported("of this type"),
            ),
        }
    }

    fn start(&mut self, stream: u32, spec: &ExecSpec, connection: &mut Connection) {
        if self.executions.contains_key(&stream) {
            let message = format!("stream {stream} has an execution already");
            let kind = RequestErrorKind::Invalid;
            return send_error(connection, stream, RequestError { kind, message });
        }
        match Execution::start(spec, &self.backend, &self.children) {
            Ok(execution) => {
                let pid = execution.pid();
                self.executions.insert(stream, execution);
                connection.send(stream, PayloadMessage::Started { pid });
            }
            Err(ending) => connection.send(stream, PayloadMessage::Exited { ending }),
        }
    }

    /// Moves the data of all executions, and removes those that have ended.
    fn advance(&mut self, connection: &mut Connection) {
        let now = Instant::now();
        let Self {
            backend,
            children,
            executions,
        } = self;
        executions.retain(|stream, execution| {
            execution.enforce_deadline(now, children);
            if let Some(status) = children.take(execution.pid()) {
                execution.set_status(status, backend);
            }
            let ending = execution.advance(*stream, connection);
            let is_over = ending.is_some();
            if let Some(ending) = ending {
                connection.send(*stream, PayloadMessage::Exited { ending });
            }
            !is_over
        });
    }
}

fn respond(connection: &mut Connection, stream: u32, result: Result<(), RequestError>) {
    match result {
        Ok(()) => connection.send(stream, PayloadMessage::Done),
        Err(error) => send_error(connection, stream, error),
    }
}

fn send_error(connection: &mut Connection, stream: u32, error: RequestError) {
    let RequestError { kind, message } = error;
    connection.send(stream, PayloadMessage::Error { kind, message });
}
