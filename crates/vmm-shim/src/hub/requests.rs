use nix::libc::SIGKILL;
use serde_json::Value;
use vmm_engine::{Payload, RequestError};
use vmm_protocol::frames::{
    Connection, ExecSpec, Frame, HostMessage, PayloadMessage, RequestErrorKind, Strictness, VERSION,
};

use super::execution::{Execution, Transfer};
use super::relay::{Hub, PayloadConnection};

/// What clients request.
impl Hub {
    pub(super) fn handle_request(&mut self, client_id: u64, frame: Frame<HostMessage>) {
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
            HostMessage::Pause => self.set_paused(client_id, stream, true),
            HostMessage::Resume => self.set_paused(client_id, stream, false),
            HostMessage::Call { request } => self.call(client_id, stream, &request),
            HostMessage::Put(_) => self.start_transfer(client_id, stream, Transfer::Put, message),
            HostMessage::Get(_) => self.start_transfer(client_id, stream, Transfer::Get, message),
            HostMessage::Stats | HostMessage::Shutdown { .. } => {
                self.pass_on(client_id, stream, message)
            }
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
        let error = if !is_valid_id(&spec.id) || self.executions.get(&spec.id).is_some() {
            let message = format!(
                "the id {:?} belongs to an execution, or is not 1 to 64 letters, digits, `-`, `_` \
                 and `.`",
                spec.id
            );
            let kind = RequestErrorKind::Invalid;
            Some(RequestError { kind, message })
        } else {
            self.prepare_execution().err()
        };
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        if let Some(RequestError { kind, message }) = error {
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

    /// Freezes the payload, or lets it continue.
    fn set_paused(&mut self, client_id: u64, stream: u32, paused: bool) {
        let request = if paused { "pause" } else { "resume" };
        let result = self.payload().and_then(|payload| {
            let pause = payload.pause();
            let pause = pause.ok_or_else(|| RequestError::unsupported(request))?;
            if paused {
                pause.pause()
            } else {
                pause.resume()
            }
        });
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        match result {
            Ok(()) => client.send(stream, PayloadMessage::Done),
            Err(error) => client.send_error(stream, error.kind, error.message),
        }
    }

    /// Carries out a request that only the engine knows.
    fn call(&mut self, client_id: u64, stream: u32, request: &Value) {
        let result = self.payload().and_then(|payload| {
            let calls = payload.calls();
            calls
                .ok_or_else(|| RequestError::unsupported("call"))?
                .call(request)
        });
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        match result {
            Ok(result) => client.send(stream, PayloadMessage::CallResult { result }),
            Err(error) => client.send_error(stream, error.kind, error.message),
        }
    }

    fn payload(&self) -> Result<&dyn Payload, RequestError> {
        self.reporter.payload().ok_or_else(|| RequestError {
            kind: RequestErrorKind::NotReady,
            message: "the payload is not started yet; wait until the box is running".to_owned(),
        })
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

    /// Connects to the payload, unless too many executions run.
    pub(super) fn prepare_execution(&mut self) -> Result<(), RequestError> {
        if !self.executions.has_room() {
            let message = "too many executions run in the box; wait until one has ended".to_owned();
            let kind = RequestErrorKind::Failed;
            return Err(RequestError { kind, message });
        }
        self.connect().map(|_| ())
    }

    /// Returns the connection to the payload, and opens it for the first request.
    fn connect(&mut self) -> Result<&mut PayloadConnection, RequestError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let channel = self.payload()?.control_channel();
                let channel = channel.ok_or_else(|| RequestError::unsupported("exec"))?;
                Connection::new(channel.open()?, Strictness::Resynchronize).map_err(|error| {
                    RequestError {
                        kind: RequestErrorKind::Failed,
                        message: format!("cannot connect to the payload: {error}"),
                    }
                })?
            }
        };
        Ok(self.connection.insert(connection))
    }
}

/// An id is part of every list of executions.
fn is_valid_id(id: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(is_valid)
}
