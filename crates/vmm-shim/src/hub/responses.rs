use vmm_protocol::frames::{Frame, PayloadMessage};
use vmm_protocol::{Ending, FailureKind};

use super::relay::Hub;

/// What the payload and its engine send.
impl Hub {
    pub(super) fn handle_response(&mut self, frame: Frame<PayloadMessage>) {
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
                PayloadMessage::Error(error) if execution.transfer().is_some() => {
                    return self.refuse_transfer(stream, error);
                }
                PayloadMessage::Error(error) => {
                    let ending = Ending::failed(FailureKind::Engine, error.message);
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
                    client.open_stream(client_stream, id.clone());
                }
                client.send(client_stream, response.clone());
            }
            if let PayloadMessage::Exited { .. } = response {
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
}
