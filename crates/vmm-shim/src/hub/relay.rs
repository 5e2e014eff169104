use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use vmm_protocol::frames::{
    Connection, Frame, FrameError, HostMessage, PayloadMessage, RequestErrorKind,
};
use vmm_protocol::poll::{is_readable, wait_until};
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

/// The message of what does not take place any more.
pub(super) const PAYLOAD_ENDED: &str = "the payload has ended";

/// How many clients are connected at once. Others wait in the queue of the socket.
const MAX_CLIENTS: usize = 512;

/// How long the hub accepts no client after the kernel had no descriptor or memory for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A hub that has a thread.
pub(crate) struct RunningHub {
    /// Dropping it tells the hub that the payload has ended.
    payload_runs: PipeWriter,
    /// Closes when the thread ends.
    done: Receiver<()>,
}

impl RunningHub {
    /// Waits until all clients have what the payload has sent before its end. The caller has waited for the payload.
    pub(crate) fn finish(self, timeout: Duration) {
        drop(self.payload_runs);
        let _ = self.done.recv_timeout(timeout);
    }
}

/// Relays between the clients of a shim and its payload.
pub(super) struct Hub {
    socket: Arc<ControlSocket>,
    /// Hangs up when the payload has ended.
    payload_end: PipeReader,
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
    /// Whether the payload has hung up, or has ended without a connection. It and its engine get no more requests.
    pub(super) is_over: bool,
}

impl Hub {
    /// Starts the thread of the hub. A panic of the payload in it ends the shim.
    pub(super) fn start(
        socket: Arc<ControlSocket>,
        reporter: Arc<ExitReporter>,
    ) -> io::Result<RunningHub> {
        let (payload_end, payload_runs) = io::pipe()?;
        let mut hub = Self {
            socket,
            payload_end,
            accept_pause_end: None,
            reporter,
            connection: None,
            engine: None,
            next_stream: 1,
            clients: BTreeMap::new(),
            next_client: 0,
            executions: ExecutionTable::default(),
            requests: BTreeMap::new(),
            is_over: false,
        };
        let (sender, done) = mpsc::channel();
        thread::Builder::new()
            .name("shim-hub".to_owned())
            .spawn(move || {
                let _done: mpsc::Sender<()> = sender;
                let reporter = Arc::clone(&hub.reporter);
                match panic::catch_unwind(AssertUnwindSafe(|| hub.run())) {
                    Ok(Ok(())) => {}
                    // Clients are disconnected, and the payload goes on.
                    Ok(Err(error)) => {
                        let _ = writeln!(
                            io::stderr(),
                            "vmm-shim: cannot serve clients any more; restart the box: {error}"
                        );
                    }
                    Err(_) => reporter.exit_with_panic(),
                }
            })?;
        Ok(RunningHub { payload_runs, done })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let deadline = self.deadline();
            self.wait_and_fill(deadline)?;
            if self.is_over {
                return self.finish();
            }
            self.accept();
            self.receive_from_clients();
            self.receive_from_engine()?;
            self.is_over = self.receive_from_payload();
            self.advance();
            self.flush();
            if self.is_over {
                return self.finish();
            }
        }
    }

    /// Returns when the hub has something to do although no descriptor is ready: an execution drops output that
    /// no client has read, a client is late with a frame, clients are accepted again, or, at once, frames that
    /// were read can be handled, or sent to the payload.
    fn deadline(&mut self) -> Option<Instant> {
        let can_send = self.connection.as_ref().is_some_and(Connection::has_room)
            && self
                .executions
                .all()
                .any(|execution| execution.has_frames_for_payload());
        let mut clients = self.clients.iter();
        if can_send || clients.any(|(id, client)| self.can_handle_frame_of(*id, client)) {
            return Some(Instant::now());
        }
        let clients = self.clients.values();
        let readable = clients.filter(|client| client.accepts_frames());
        let frames = readable.filter_map(Client::frame_deadline);
        let executions = self.executions.all();
        let deadlines = executions.filter_map(|execution| execution.drop_deadline());
        deadlines.chain(frames).chain(self.accept_pause_end).min()
    }

    /// Blocks until a descriptor is ready or the deadline is over, and reads what has arrived.
    fn wait_and_fill(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let accepts = self.accept_pause_end.is_none() && self.clients.len() < MAX_CLIENTS;
        let mut of_socket = PollFlags::empty();
        of_socket.set(PollFlags::IN, accepts);
        let mut fds = vec![PollFd::new(&*self.socket, of_socket)];
        // Without those that have hung up, which the kernel would report every time.
        let open_clients = self.clients.values().filter(|client| client.is_open());
        fds.extend(open_clients.map(|client| client.poll_fd(client.accepts_frames())));
        let connections = self.connection.iter().chain(&self.engine);
        fds.extend(connections.map(|connection| connection.poll_fd(true)));
        // The connection to the payload hangs up after everything that the payload has sent.
        let awaits_end = self.connection.is_none() && !self.is_over;
        let payload_end = awaits_end.then_some(&self.payload_end);
        fds.extend(payload_end.map(|end| PollFd::new(end, PollFlags::empty())));
        wait_until(&mut fds, deadline)?;
        let mut is_readable = fds[1..]
            .iter()
            .map(is_readable)
            .collect::<Vec<_>>()
            .into_iter();
        let mut gone = Vec::new();
        let now = Instant::now();
        let clients = self.clients.iter_mut();
        for (id, client) in clients.filter(|(_, client)| client.is_open()) {
            let is_gone = if is_readable.next() == Some(true) {
                client.fill().is_err()
            } else {
                // What is not read for lack of room is not late.
                let is_late = client.frame_deadline().is_some_and(|end| end <= now);
                is_late && client.accepts_frames()
            };
            if is_gone {
                gone.push(*id);
            }
        }
        for connection in self.connection.iter_mut().chain(&mut self.engine) {
            if is_readable.next() == Some(true) {
                connection.fill()?;
            }
        }
        self.is_over |= is_readable.next() == Some(true);
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

    /// Returns whether a frame of the client was read, and the next one that was read can be handled now.
    fn can_handle_frame_of(&self, id: u64, client: &Client) -> bool {
        let is_held_back = |frame: &Frame<_>| self.is_held_back(id, &frame.message);
        client.has_unhandled() && client.has_room() && !client.postponed().is_some_and(is_held_back)
    }

    /// Handles the frames of the clients, each client's until it has no room for another response, or the next
    /// frame has to wait.
    fn receive_from_clients(&mut self) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        for id in ids {
            while let Some(client) = self.clients.get_mut(&id)
                && client.has_room()
            {
                match client.next_frame() {
                    Ok(Some(frame)) => {
                        if self.is_held_back(id, &frame.message) {
                            self.postpone(id, frame);
                            break;
                        }
                        self.handle_request(id, frame);
                    }
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
                // Its thread has ended.
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
            if !execution.is_listed()
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

    /// Sends clients what is left, after the payload has ended.
    fn finish(&mut self) -> io::Result<()> {
        self.connection = None;
        // A response would come too late.
        self.engine = None;
        for execution in self.executions.all() {
            if !execution.is_complete() {
                execution.complete(Ending::failed(FailureKind::Engine, PAYLOAD_ENDED));
            }
        }
        for (client, stream) in mem::take(&mut self.requests).into_values() {
            if let Some(client) = self.clients.get_mut(&client) {
                client.send_error(stream, RequestErrorKind::Failed, PAYLOAD_ENDED.to_owned());
            }
        }
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        loop {
            self.receive_from_clients();
            self.advance();
            self.flush();
            let has_reader = |execution: &mut Execution| execution.reader().is_some();
            let gets_response = |client: &Client| {
                client.has_pending() || (client.has_unhandled() && client.has_room())
            };
            let is_waiting =
                self.executions.all().any(has_reader) || self.clients.values().any(gets_response);
            if !is_waiting || deadline <= Instant::now() {
                return Ok(());
            }
            let next = self.deadline().map_or(deadline, |next| next.min(deadline));
            self.wait_and_fill(Some(next))?;
        }
    }
}
