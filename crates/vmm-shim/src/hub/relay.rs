use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_protocol::frames::{
    Connection, Frame, FrameError, HostMessage, PayloadMessage, RequestErrorKind,
};
use vmm_protocol::{Ending, FailureKind};

use super::client::Client;
use super::execution::Execution;
use super::listener::ControlSocket;
use super::table::ExecutionTable;
use crate::exit_reporter::ExitReporter;

/// The connection to the payload.
pub(super) type PayloadConnection = Connection<PayloadMessage, HostMessage>;

/// How long clients may take to read what is left when the payload has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

/// How many clients are connected at once. Others wait in the queue of the socket.
const MAX_CLIENTS: usize = 512;

/// How long the hub accepts no client after the kernel had no descriptor or memory for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Relays between the clients of a shim and its payload.
pub(crate) struct Hub {
    socket: ControlSocket,
    /// When the hub accepts clients again.
    accept_pause_end: Option<Instant>,
    pub(super) reporter: Arc<ExitReporter>,
    pub(super) connection: Option<PayloadConnection>,
    /// The connection to the thread that carries out requests to the engine.
    pub(super) engine: Option<PayloadConnection>,
    /// The stream of the next request to the payload.
    pub(super) next_stream: u32,
    pub(super) clients: BTreeMap<u64, Client>,
    next_client: u64,
    pub(super) executions: ExecutionTable,
    /// Requests to the payload and its engine that are not executions, by stream: the client, and its
    /// stream.
    pub(super) requests: BTreeMap<u32, (u64, u32)>,
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
            accept_pause_end: None,
            reporter,
            connection: None,
            engine: None,
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
            let timeout = self.timeout();
            self.wait_and_fill(timeout)?;
            self.accept();
            self.receive_from_clients();
            self.receive_from_engine()?;
            let is_over = self.receive_from_payload();
            self.advance();
            self.flush();
            if is_over {
                return self.finish();
            }
        }
    }

    /// Returns the time until an execution drops output that no client has read, or until clients
    /// are accepted again. Returns zero if frames that were read can be handled now.
    fn timeout(&mut self) -> PollTimeout {
        let mut clients = self.clients.values();
        if self.payload_has_room()
            && clients.any(|client| client.has_unhandled() && client.has_room())
        {
            return PollTimeout::ZERO;
        }
        let executions = self.executions.all();
        let deadlines = executions.filter_map(|execution| execution.drop_deadline());
        let deadline = deadlines.chain(self.accept_pause_end).min();
        deadline.map_or(PollTimeout::NONE, |deadline| {
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
        let payload_has_room = self.payload_has_room();
        let accepts = self.accept_pause_end.is_none() && self.clients.len() < MAX_CLIENTS;
        let mut fds = vec![PollFd::new(self.socket.as_fd(), events(accepts, false))];
        fds.extend(self.clients.values().map(|client| {
            let may_read = payload_has_room && client.has_room() && !client.has_unhandled();
            PollFd::new(client.as_fd(), events(may_read, client.has_pending()))
        }));
        let connections = self.connection.iter().chain(&self.engine);
        fds.extend(connections.map(|connection| {
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
        for connection in self.connection.iter_mut().chain(&mut self.engine) {
            if is_readable.next() == Some(true) {
                connection.fill()?;
            }
        }
        gone.into_iter().for_each(|id| self.disconnect(id));
        Ok(())
    }

    fn accept(&mut self) {
        if self
            .accept_pause_end
            .is_some_and(|end| Instant::now() < end)
        {
            return;
        }
        self.accept_pause_end = None;
        while self.clients.len() < MAX_CLIENTS {
            match self
                .socket
                .accept()
                .and_then(|fd| fd.map(Client::new).transpose())
            {
                Ok(Some(client)) => {
                    self.clients.insert(self.next_client, client);
                    self.next_client += 1;
                }
                Ok(None) => return,
                // Such as EMFILE. The client waits in the queue of the socket, which stays readable.
                Err(_) => {
                    self.accept_pause_end = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn payload_has_room(&self) -> bool {
        self.connection.as_ref().is_none_or(Connection::has_room)
    }

    /// Handles the frames of the clients, each client's until it has no room for another response.
    fn receive_from_clients(&mut self) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        for id in ids {
            while self.payload_has_room()
                && let Some(client) = self.clients.get_mut(&id)
                && client.has_room()
            {
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

    /// Handles what the thread for requests to the engine has sent.
    fn receive_from_engine(&mut self) -> io::Result<()> {
        while let Some(engine) = &mut self.engine {
            match engine.next_frame().map_err(io::Error::other)? {
                Some(frame) => self.handle_response(frame),
                // The engine has panicked.
                None if engine.is_hung_up() => return Err(io::ErrorKind::BrokenPipe.into()),
                None => break,
            }
        }
        Ok(())
    }

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
                // A guest may send anything, at any time.
                _ if execution.is_complete() => return,
                PayloadMessage::Started { .. } if execution.pid().is_some() => return,
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
                PayloadMessage::Stdout(data) => return execution.add_output(false, &data),
                PayloadMessage::Stderr(data) => return execution.add_output(true, &data),
                PayloadMessage::Credit { bytes } => return execution.grant_input(bytes),
                PayloadMessage::Ended { ending } => {
                    if execution.pid().is_none() || execution.ending().is_some() {
                        return;
                    }
                    PayloadMessage::Exited {
                        ending: execution.set_ending(ending),
                    }
                }
                PayloadMessage::Exited { ending } => PayloadMessage::Exited {
                    ending: execution.complete(ending),
                },
                PayloadMessage::Error { kind, message } if execution.transfer().is_some() => {
                    return self.refuse_transfer(stream, kind, message);
                }
                PayloadMessage::Error { message, .. } => {
                    let ending = Ending::failed(FailureKind::Engine, message);
                    PayloadMessage::Exited {
                        ending: execution.complete(ending),
                    }
                }
                _ => return,
            };
            let id = execution.id().to_owned();
            // The client that has started the execution without attaching to it.
            if let Some((client, client_stream)) = self.requests.remove(&stream)
                && let Some(client) = self.clients.get_mut(&client)
            {
                if let PayloadMessage::Started { .. } = response {
                    client.open_stream(client_stream, id);
                }
                client.send(client_stream, response);
            } else if let PayloadMessage::Exited { .. } = response {
                self.send_ending(&id, &response);
            }
        } else if let Some((client, client_stream)) = self.requests.remove(&stream)
            && let Some(client) = self.clients.get_mut(&client)
        {
            client.send(client_stream, message);
        }
    }

    /// Sends the ending of an execution on the streams that do not have its output, and closes them.
    fn send_ending(&mut self, id: &str, ending: &PayloadMessage) {
        let execution = self.executions.get(id);
        let reader = execution.and_then(|execution| execution.reader());
        let reader = reader.map(|reader| (reader.client, reader.stream));
        for (client_id, client) in &mut self.clients {
            for stream in client.streams_of(id) {
                if reader != Some((*client_id, stream)) {
                    client.close_stream(stream);
                    client.send(stream, ending.clone());
                }
            }
        }
    }

    /// Moves input and output of all executions.
    fn advance(&mut self) {
        let mut over = Vec::new();
        for stream in self.executions.in_turn() {
            let Some(execution) = self.executions.of_stream(stream) else {
                continue;
            };
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
                    client.close_stream(stream);
                }
            }
            if execution.is_forgotten()
                && execution.is_complete()
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
        for connection in self.connection.iter_mut().chain(&mut self.engine) {
            // What receives from the connection handles a hang-up.
            let _ = connection.flush();
        }
    }

    fn disconnect(&mut self, id: u64) {
        self.end_transfers(id);
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
            if !execution.is_complete() {
                let message = "the payload has ended";
                execution.complete(Ending::failed(FailureKind::Engine, message));
            }
        }
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        loop {
            self.advance();
            self.flush();
            let has_reader = |execution: &mut Execution| execution.reader().is_some();
            let is_waiting = self.executions.all().any(has_reader)
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
