use nix::libc::SIGKILL;
use vmm_protocol::frames::{
    Connection, ExecSpec, Frame, HostMessage, PayloadMessage, RequestError, RequestErrorKind,
    Strictness, VERSION,
};

use super::client::{Client, TOO_MANY_STREAMS};
use super::engine_requests;
use super::execution::{Execution, Transfer};
use super::relay::{Hub, PAYLOAD_ENDED, PayloadConnection};

/// How many executions a frame lists. Such a frame is short enough, whatever a guest has sent.
const LISTED_IN_FRAME: usize = 16;

/// How many requests wait for a response of the payload or its engine at once.
const MAX_REQUESTS: usize = 256;

/// What clients request.
impl Hub {
    pub(super) fn handle_request(&mut self, client_id: u64, frame: Frame<HostMessage>) {
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        let Frame { stream, message } = frame;
        match message {
            HostMessage::Hello { version } => {
                client.version = version;
                let boot = Vec::new();
                let version = VERSION;
                client.send(stream, PayloadMessage::Ready { version, boot });
            }
            _ if client.version != VERSION => {
                let message = format!(
                    "the client speaks version {} of the control frames, and the shim of the box \
                     version {VERSION}; restart the box",
                    client.version
                );
                client.send_error(stream, RequestErrorKind::Unsupported, message);
            }
            HostMessage::Ping { token } => client.send(stream, PayloadMessage::Pong { token }),
            HostMessage::List => {
                let listed = self
                    .executions
                    .all()
                    .filter(|execution| execution.is_listed());
                let listed: Vec<_> = listed.map(|execution| execution.listed()).collect();
                let mut chunks = listed.chunks(LISTED_IN_FRAME).peekable();
                loop {
                    let executions = chunks.next().unwrap_or_default().to_vec();
                    let more = chunks.peek().is_some();
                    client.send(stream, PayloadMessage::Executions { executions, more });
                    if !more {
                        break;
                    }
                }
            }
            HostMessage::Exec(spec) => self.start_execution(client_id, stream, spec, true),
            HostMessage::Start(spec) => self.start_execution(client_id, stream, spec, false),
            HostMessage::Attach { id, output } => self.attach(client_id, stream, &id, output),
            HostMessage::Remove { id } => self.remove(client_id, stream, &id),
            HostMessage::Pause | HostMessage::Resume | HostMessage::Call { .. } => {
                self.pass_on(client_id, stream, message, Self::connect_to_engine)
            }
            HostMessage::Put(_) => self.start_transfer(client_id, stream, Transfer::Put, message),
            HostMessage::Get(_) => self.start_transfer(client_id, stream, Transfer::Get, message),
            HostMessage::Stats | HostMessage::Shutdown { .. } => {
                self.pass_on(client_id, stream, message, Self::connect)
            }
            message => self.handle_in_stream(client_id, stream, message),
        }
    }

    /// Returns whether a request, and those of the client that follow, must wait. One that the payload gets waits
    /// until the payload takes more frames, which a paused one does not. What the hub or the engine handles, such
    /// as [`HostMessage::Resume`], does not wait for that.
    pub(super) fn is_held_back(&self, client_id: u64, request: &HostMessage) -> bool {
        match request {
            HostMessage::Exec(_)
            | HostMessage::Start(_)
            | HostMessage::Put(_)
            | HostMessage::Get(_)
            | HostMessage::Signal { .. }
            | HostMessage::Resize(_)
            | HostMessage::Stats
            | HostMessage::Shutdown { .. } => {
                self.connection.as_ref().is_some_and(|it| !it.has_room())
            }
            HostMessage::Attach { id, output: true } => self.awaits_disconnect(client_id, id),
            _ => false,
        }
    }

    /// Returns whether another client must be disconnected first: the client takes over the output of an execution
    /// from one that has left. What that one has sent is handled first.
    fn awaits_disconnect(&self, client_id: u64, execution: &str) -> bool {
        let Some(reader) = self.executions.reader_of(execution) else {
            return false;
        };
        let has_left = |client| self.clients.get(client).is_some_and(Client::has_left);
        // Of two clients that have left, none waits for the other.
        has_left(&reader.client) && !has_left(&client_id)
    }

    /// Handles the request again later, and those that follow after it.
    pub(super) fn postpone(&mut self, client_id: u64, frame: Frame<HostMessage>) {
        if let Some(client) = self.clients.get_mut(&client_id) {
            client.postpone(frame);
        }
    }

    /// Handles a message that belongs to an open stream.
    fn handle_in_stream(&mut self, client_id: u64, stream: u32, message: HostMessage) {
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        let id = client.execution_of(stream);
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
                    let message = "the client has sent more input than its credit";
                    client.send_error(stream, RequestErrorKind::Invalid, message);
                }
            }
            HostMessage::CloseStdin if has_output => execution.close_input(),
            HostMessage::Credit { bytes } if has_output => execution.grant_output(bytes),
            HostMessage::Signal { .. } | HostMessage::Resize(_) => {
                let _ = connection.send(execution.stream(), message);
            }
            _ => {
                let message = "the stream does not have the output of the execution";
                client.send_error(stream, RequestErrorKind::Invalid, message);
            }
        }
    }

    /// Starts a command. If the client does not attach to it, the stream only gets the response.
    fn start_execution(&mut self, client_id: u64, stream: u32, spec: ExecSpec, attach: bool) {
        let error = if !is_valid_id(&spec.id) || self.executions.get(&spec.id).is_some() {
            let message = format!(
                "the id {:?} belongs to an execution, or is not 1 to 64 letters, digits, `-`, `_` \
                 and `.`",
                spec.id
            );
            Some(RequestError::new(RequestErrorKind::Invalid, message))
        } else {
            self.prepare_execution().err()
        };
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        if let Some(error) = error {
            return client.send(stream, PayloadMessage::Error(error));
        }
        if attach && !client.open_stream(stream, spec.id.clone()) {
            return client.send_error(stream, RequestErrorKind::Failed, TOO_MANY_STREAMS);
        }
        let mut execution = Execution::new(&spec, self.next_stream);
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.send(self.next_stream, HostMessage::Exec(spec))
        {
            client.close_stream(stream);
            return client.send_error(stream, RequestErrorKind::Invalid, error.to_string());
        }
        if attach {
            execution.attach(client_id, stream);
        } else {
            execution.await_reader();
            self.requests.insert(self.next_stream, (client_id, stream));
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
        if !client.open_stream(stream, id.to_owned()) {
            return client.send_error(stream, RequestErrorKind::Failed, TOO_MANY_STREAMS);
        }
        let pid = execution.pid();
        // The payload's response to the start is also that to a reader that attaches before it.
        if pid.is_some() || !output || execution.ending().is_some() {
            let pid = pid.unwrap_or(0);
            let input_credit = execution.input_credit();
            client.send(stream, PayloadMessage::Started { pid, input_credit });
        }
        if output {
            execution.attach(client_id, stream);
        } else if let Some(ending) = execution.ending().cloned() {
            client.close_stream(stream);
            client.send(stream, PayloadMessage::Exited { ending });
        }
    }

    /// Kills an execution, and removes it. Its reader gets the ending all the same.
    fn remove(&mut self, client_id: u64, stream: u32, id: &str) {
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
            let kill = HostMessage::signal(SIGKILL);
            let _ = connection.send(execution.stream(), kill);
        }
        execution.unlist();
        client.send(stream, PayloadMessage::Done);
    }

    /// Passes a request on to the payload or its engine, and its response back.
    fn pass_on(
        &mut self,
        client_id: u64,
        stream: u32,
        message: HostMessage,
        connect: fn(&mut Self) -> Result<&mut PayloadConnection, RequestError>,
    ) {
        let to_payload = self.next_stream;
        let has_room = self.requests.len() < MAX_REQUESTS;
        let result = connect(self).and_then(|connection| {
            if !has_room || !connection.has_room() {
                let message = "too many requests wait for a response; try again later";
                return Err(RequestError::new(RequestErrorKind::Failed, message));
            }
            connection
                .send(to_payload, message)
                .map_err(|error| RequestError::new(RequestErrorKind::Invalid, error.to_string()))
        });
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        match result {
            Ok(()) => drop(self.requests.insert(to_payload, (client_id, stream))),
            Err(error) => client.send(stream, PayloadMessage::Error(error)),
        }
        self.next_stream += 1;
    }

    /// Connects to the payload, unless too many executions are active.
    pub(super) fn prepare_execution(&mut self) -> Result<(), RequestError> {
        if !self.executions.has_room() {
            let message = "too many executions of the box run, or wait until their output is read; \
                           read it, or wait until one has ended";
            return Err(RequestError::new(RequestErrorKind::Failed, message));
        }
        self.connect().map(|_| ())
    }

    /// Returns the connection to the payload, and opens it for the first request.
    fn connect(&mut self) -> Result<&mut PayloadConnection, RequestError> {
        self.check_not_over()?;
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let channel = self.reporter.started_payload()?.control_channel();
                let channel = channel.ok_or_else(|| RequestError::unsupported("exec"))?;
                Connection::new(channel.open()?, Strictness::Resynchronize).map_err(|error| {
                    let message = format!("cannot connect to the payload: {error}");
                    RequestError::new(RequestErrorKind::Failed, message)
                })?
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Returns the connection to the thread for requests to the engine, which starts with the first one.
    fn connect_to_engine(&mut self) -> Result<&mut PayloadConnection, RequestError> {
        self.check_not_over()?;
        let connection = match self.engine.take() {
            Some(connection) => connection,
            None => engine_requests::connect(&self.reporter).map_err(|error| {
                let message = format!("cannot send requests to the engine: {error}");
                RequestError::new(RequestErrorKind::Failed, message)
            })?,
        };
        Ok(self.engine.insert(connection))
    }

    fn check_not_over(&self) -> Result<(), RequestError> {
        if self.is_over {
            return Err(RequestError {
                kind: RequestErrorKind::Failed,
                message: PAYLOAD_ENDED.to_owned(),
            });
        }
        Ok(())
    }
}

/// An id is part of every list of executions.
fn is_valid_id(id: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(is_valid)
}
