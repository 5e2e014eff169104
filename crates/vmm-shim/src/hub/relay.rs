use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_engine::RequestError;
use vmm_protocol::frames::{
    Connection, ExecSpec, Frame, FrameError, HostMessage, PayloadMessage, RequestErrorKind,
    Strictness, VERSION,
};

use super::client::Client;
use super::execution::Execution;
use super::listener::ControlSocket;
use super::table::ExecutionTable;
use crate::exit_reporter::ExitReporter;

/// The connection to the payload.
pub(super) type PayloadConnection = Connection<PayloadMessage, HostMessage>;

/// How long clients may take to read what is left when the payload has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// Relays between the clients of a shim and its payload.
pub(crate) struct Hub {
    socket: ControlSocket,
    reporter: Arc<ExitReporter>,
    connection: Option<PayloadConnection>,
    /// The stream of the next request to the payload.
    next_stream: u32,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    executions: ExecutionTable,
    /// Requests to the payload that are not executions, by stream: the client, and its stream.
    requests: BTreeMap<u32, (u64, u32)>,
}

impl Hub {
    /// Starts the thread of the hub. The channel closes when all clients have what the payload has
    /// sent before its end.
    pub(crate) fn start(
        socket: ControlSocket,
        reporter: Arc<ExitReporter>,
    ) -> io::Result<Receiver<()>> {
        let mut hub = Self {
            socket,
            reporter,
            connection: None,
            next_stream: 1,
            clients: BTreeMap::new(),
            next_client: 0,
            executions: ExecutionTable::default(),
            requests: BTreeMap::new(),
        };
        let (done, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("shim-hub".to_owned())
            .spawn(move || {
                let _done: mpsc::Sender<()> = done;
                // Without the hub, clients are disconnected, and the payload goes on.
                let _ = hub.run();
            })?;
        Ok(receiver)
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let timeout = self.drop_timeout();
            self.wait_and_fill(timeout)?;
            self.accept()?;
            self.receive_from_clients();
            let is_over = self.receive_from_payload();
            self.advance();
            self.flush();
            if is_over {
                return self.finish();
            }
        }
    }

    /// Returns the time until an execution drops output that no client has read.
    fn drop_timeout(&mut self) -> PollTimeout {
        let executions = self.executions.all();
        let deadline = executions.filter_map(|execution| execution.drop_deadline());
        deadline.min().map_or(PollTimeout::NONE, |deadline| {
            // Rounded up, so that `poll` does not return before the deadline.
            let left =
                deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        })
    }

    /// Blocks until a descriptor is ready, and reads what has arrived.
    fn wait_and_fill(&mut self, timeout: PollTimeout) -> io::Result<()> {
        let events = |may_read: bool, has_pending: bool| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, may_read);
            events.set(PollFlags::POLLOUT, has_pending);
            events
        };
        let payload_has_room = self.connection.as_ref().is_none_or(Connection::has_room);
        let mut fds = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.clients.values().map(|client| {
            let may_read = payload_has_room && client.has_room();
            PollFd::new(client.as_fd(), events(may_read, client.has_pending()))
        }));
        fds.extend(self.connection.iter().map(|connection| {
            PollFd::new(connection.as_fd(), events(true, connection.has_pending()))
        }));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        let mut is_readable = fds[1..]
            .iter()
            .map(|fd| {
                fd.revents()
                    .is_some_and(|events| events.intersects(readable))
            })
            .collect::<Vec<_>>()
            .into_iter();
        let mut gone = Vec::new();
        for (id, client) in &mut self.clients {
            if is_readable.next() == Some(true) && client.fill().is_err() {
                gone.push(*id);
            }
        }
        if let (Some(connection), Some(true)) = (&mut self.connection, is_readable.next()) {
            connection.fill()?;
        }
        gone.into_iter().for_each(|id| self.disconnect(id));
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Some(fd) = self.socket.accept()? {
            self.clients.insert(self.next_client, Client::new(fd)?);
            self.next_client += 1;
        }
        Ok(())
    }

    fn receive_from_clients(&mut self) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        for id in ids {
            while let Some(client) = self.clients.get_mut(&id) {
                match client.next_frame() {
                    Ok(Some(frame)) => self.handle_request(id, frame),
                    Ok(None) => break,
                    Err(FrameError::Header) => self.disconnect(id),
                    Err(error) => {
                        client.send_error(0, RequestErrorKind::Invalid, error.to_string());
                    }
                }
            }
        }
    }

    fn handle_request(&mut self, client_id: u64, frame: Frame<HostMessage>) {
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        let Frame { stream, message } = frame;
        match message {
            HostMessage::Hello { .. } => {
                let boot = Vec::new();
                let version = VERSION;
                client.send(stream, PayloadMessage::Ready { version, boot });
            }
            HostMessage::Ping { token } => client.send(stream, PayloadMessage::Pong { token }),
            HostMessage::List => {
                let listed = self
                    .executions
                    .all()
                    .filter(|execution| !execution.is_forgotten());
                let executions = listed.map(|execution| execution.listed()).collect();
                client.send(stream, PayloadMessage::Executions { executions });
            }
            HostMessage::Exec(spec) => self.start_execution(client_id, stream, spec, true),
            HostMessage::Start(spec) => self.start_execution(client_id, stream, spec, false),
            HostMessage::Attach { id, output } => self.attach(client_id, stream, &id, output),
            HostMessage::Forget { id } => self.forget(client_id, stream, &id),
            HostMessage::Pause
            | HostMessage::Resume
            | HostMessage::Stats
            | HostMessage::Put { .. }
            | HostMessage::Get { .. }
            | HostMessage::Shutdown { .. } => self.pass_on(client_id, stream, message),
            message => self.handle_in_stream(client_id, stream, message),
        }
    }

    /// Handles a message that belongs to an open stream.
    fn handle_in_stream(&mut self, client_id: u64, stream: u32, message: HostMessage) {
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        let id = client.streams.get(&stream);
        let execution = id.and_then(|id| self.executions.get(id));
        let (Some(execution), Some(connection)) = (execution, &mut self.connection) else {
            // The execution has ended meanwhile, or belongs to another version.
            return;
        };
        let has_output = execution
            .reader()
            .is_some_and(|reader| reader.client == client_id && reader.stream == stream);
        match message {
            HostMessage::Stdin(data) if has_output => {
                if !execution.add_input(&data) {
                    let message = "the client has sent more input than its credit".to_owned();
                    client.send_error(stream, RequestErrorKind::Invalid, message);
                }
            }
            HostMessage::CloseStdin if has_output => execution.close_input(),
            HostMessage::Credit { bytes } if has_output => execution.grant_output(bytes),
            HostMessage::Signal { .. } | HostMessage::Resize(_) => {
                let _ = connection.send(execution.stream(), message);
            }
            _ => {
                let message = "the stream does not have the output of the execution".to_owned();
                client.send_error(stream, RequestErrorKind::Invalid, message);
            }
        }
    }

    /// Starts a command. If the client does not attach to it, the stream only gets the response.
    fn start_execution(&mut self, client_id: u64, stream: u32, spec: ExecSpec, attach: bool) {
        let error = if spec.id.is_empty() || self.executions.get(&spec.id).is_some() {
            let message = format!("the id {:?} is empty, or an execution has it", spec.id);
            Some((RequestErrorKind::Invalid, message))
        } else {
            self.connect()
                .err()
                .map(|error| (error.kind, error.message))
        };
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        if let Some((kind, message)) = error {
            return client.send_error(stream, kind, message);
        }
        let mut execution = Execution::new(&spec, self.next_stream);
        if attach {
            execution.attach(client_id, stream);
            client.streams.insert(stream, spec.id.clone());
        } else {
            execution.await_reader();
            self.requests.insert(self.next_stream, (client_id, stream));
        }
        if let Some(connection) = &mut self.connection {
            let sent = connection.send(self.next_stream, HostMessage::Exec(spec));
            if let Err(error) = sent {
                return client.send_error(stream, RequestErrorKind::Invalid, error.to_string());
            }
        }
        self.next_stream += 1;
        self.executions.insert(execution);
        self.executions.trim();
    }

    fn attach(&mut self, client_id: u64, stream: u32, id: &str, output: bool) {
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        let Some(execution) = self.executions.attachable(id) else {
            let message = format!("execution {id} not found");
            return client.send_error(stream, RequestErrorKind::NotFound, message);
        };
        if output && execution.reader().is_some() {
            let message = format!("another client is attached to execution {id}");
            return client.send_error(stream, RequestErrorKind::InUse, message);
        }
        client.streams.insert(stream, id.to_owned());
        let pid = execution.pid().unwrap_or(0);
        let input_credit = execution.input_credit();
        client.send(stream, PayloadMessage::Started { pid, input_credit });
        if output {
            execution.attach(client_id, stream);
        } else if let Some(ending) = execution.ending().cloned() {
            client.send(stream, PayloadMessage::Exited { ending });
        }
    }

    /// Kills an execution, and removes it. Its reader gets the ending all the same.
    fn forget(&mut self, client_id: u64, stream: u32, id: &str) {
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        let Some(execution) = self.executions.listed(id) else {
            let message = format!("execution {id} not found");
            return client.send_error(stream, RequestErrorKind::NotFound, message);
        };
        if execution.ending().is_none()
            && let Some(connection) = &mut self.connection
        {
            let kill = HostMessage::Signal { signal: SIGKILL };
            let _ = connection.send(execution.stream(), kill);
        }
        execution.forget();
        client.send(stream, PayloadMessage::Done);
    }

    /// Passes a request on to the payload, and its response back.
    fn pass_on(&mut self, client_id: u64, stream: u32, message: HostMessage) {
        let to_payload = self.next_stream;
        let result = self.connect().and_then(|connection| {
            connection
                .send(to_payload, message)
                .map_err(|error| RequestError {
                    kind: RequestErrorKind::Invalid,
                    message: error.to_string(),
                })
        });
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        match result {
            Ok(()) => drop(self.requests.insert(to_payload, (client_id, stream))),
            Err(error) => client.send_error(stream, error.kind, error.message),
        }
        self.next_stream += 1;
    }

    /// Returns the connection to the payload, and opens it for the first request.
    fn connect(&mut self) -> Result<&mut PayloadConnection, RequestError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let failed = |message| RequestError {
                    kind: RequestErrorKind::Failed,
                    message,
                };
                let payload = self.reporter.payload();
                let payload =
                    payload.ok_or_else(|| failed("the payload is not started yet".to_owned()))?;
                Connection::new(payload.open_control()?, Strictness::Resynchronize)
                    .map_err(|error| failed(format!("cannot connect to the payload: {error}")))?
            }
        };
        Ok(self.connection.insert(connection))
    }
}

/// What the payload sends.
impl Hub {
    /// Handles what the payload has sent. Returns true once it has hung up.
    fn receive_from_payload(&mut self) -> bool {
        loop {
            let Some(connection) = &mut self.connection else {
                return false;
            };
            match connection.next_frame() {
                Ok(Some(frame)) => self.handle_response(frame),
                Ok(None) => return connection.is_hung_up(),
                // A frame of another version. The next one follows.
                Err(_) => {}
            }
        }
    }

    fn handle_response(&mut self, frame: Frame<PayloadMessage>) {
        let Frame { stream, message } = frame;
        if let Some(execution) = self.executions.of_stream(stream) {
            let response = match message {
                PayloadMessage::Started { pid, .. } => {
                    execution.set_started(pid);
                    let input_credit = execution.input_credit();
                    let started = PayloadMessage::Started { pid, input_credit };
                    if let Some(reader) = execution.reader()
                        && let Some(client) = self.clients.get_mut(&reader.client)
                    {
                        client.send(reader.stream, started.clone());
                    }
                    started
                }
                PayloadMessage::Stdout(_) | PayloadMessage::Stderr(_) => {
                    return execution.add_output(message);
                }
                PayloadMessage::Credit { bytes } => return execution.grant_input(bytes),
                PayloadMessage::Exited { ending } => {
                    execution.set_ending(ending.clone());
                    PayloadMessage::Exited { ending }
                }
                PayloadMessage::Error { message, .. } => {
                    let kind = vmm_protocol::FailureKind::Engine;
                    let ending = vmm_protocol::Ending::failed(kind, message);
                    execution.set_ending(ending.clone());
                    PayloadMessage::Exited { ending }
                }
                _ => return,
            };
            // The client that has started the execution without attaching to it.
            if let Some((client, client_stream)) = self.requests.remove(&stream)
                && let Some(client) = self.clients.get_mut(&client)
            {
                client.send(client_stream, response);
            }
        } else if let Some((client, client_stream)) = self.requests.get(&stream).copied() {
            let is_last = !matches!(
                message,
                PayloadMessage::Stdout(_) | PayloadMessage::Credit { .. }
            );
            if is_last {
                self.requests.remove(&stream);
            }
            if let Some(client) = self.clients.get_mut(&client) {
                client.send(client_stream, message);
            }
        }
    }

    /// Moves input and output of all executions.
    fn advance(&mut self) {
        let mut over = Vec::new();
        for execution in self.executions.all() {
            let reader = execution
                .reader()
                .map(|reader| (reader.client, reader.stream));
            let client_id = reader.map(|(client, _)| client);
            let mut client = client_id.and_then(|id| self.clients.get_mut(&id));
            if let Some(connection) = &mut self.connection {
                execution.send_input(connection, client.as_deref_mut());
            }
            let is_finished =
                execution.send_output(self.connection.as_mut(), client.as_deref_mut());
            if is_finished {
                execution.detach();
                if let (Some(client), Some((_, stream))) = (client, reader) {
                    client.streams.remove(&stream);
                }
            }
            if execution.is_forgotten()
                && execution.ending().is_some()
                && execution.reader().is_none()
                && !execution.awaits_reader()
            {
                over.push(execution.id().to_owned());
            }
        }
        for id in over {
            self.executions.remove(&id);
        }
    }

    fn flush(&mut self) {
        let gone: Vec<_> = self
            .clients
            .iter_mut()
            .filter_map(|(id, client)| (!client.flush()).then_some(*id))
            .collect();
        gone.into_iter().for_each(|id| self.disconnect(id));
        if let Some(connection) = &mut self.connection {
            // `receive_from_payload` handles a hang-up.
            let _ = connection.flush();
        }
    }

    fn disconnect(&mut self, id: u64) {
        self.clients.remove(&id);
        for execution in self.executions.all() {
            if execution.reader().is_some_and(|reader| reader.client == id) {
                execution.detach();
            }
        }
        self.requests.retain(|_, (client, _)| *client != id);
    }

    /// Sends clients what is left, after the payload has hung up.
    fn finish(&mut self) -> io::Result<()> {
        self.connection = None;
        for execution in self.executions.all() {
            if execution.ending().is_none() {
                let message = "the payload has ended";
                let kind = vmm_protocol::FailureKind::Engine;
                execution.set_ending(vmm_protocol::Ending::failed(kind, message));
            }
        }
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        loop {
            self.advance();
            self.flush();
            let is_waiting = self
                .executions
                .all()
                .any(|execution| execution.reader().is_some())
                || self.clients.values().any(Client::has_pending);
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_waiting || left.is_zero() {
                return Ok(());
            }
            self.wait_and_fill(PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO))?;
            self.receive_from_clients();
        }
    }
}
