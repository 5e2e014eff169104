use nix::libc::SIGKILL;
use vmm_protocol::frames::{HostMessage, PayloadMessage, RequestError, RequestErrorKind};

use super::client::TOO_MANY_STREAMS;
use super::execution::{Execution, Transfer};
use super::relay::Hub;

/// File transfers: executions of the payload that belong to one client.
impl Hub {
    /// Starts a file transfer. The client is attached to it.
    pub(super) fn start_transfer(
        &mut self,
        client_id: u64,
        stream: u32,
        transfer: Transfer,
        request: HostMessage,
    ) {
        let prepared = self.prepare_execution();
        let Some(client) = self.clients.get_mut(&client_id) else {
            return;
        };
        if let Err(error) = prepared {
            return client.send(stream, PayloadMessage::Error(error));
        }
        let mut transfer = Execution::of_transfer(transfer, self.next_stream);
        if !client.open_stream(stream, transfer.id().to_owned()) {
            return client.send_error(stream, RequestErrorKind::Failed, TOO_MANY_STREAMS);
        }
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.send(self.next_stream, request)
        {
            client.close_stream(stream);
            return client.send_error(stream, RequestErrorKind::Invalid, error.to_string());
        }
        transfer.attach(client_id, stream);
        self.next_stream += 1;
        self.executions.insert(transfer);
    }

    /// Passes on that the payload has refused a file transfer.
    pub(super) fn refuse_transfer(&mut self, stream: u32, error: RequestError) {
        let Some(transfer) = self.executions.of_stream(stream) else {
            return;
        };
        let id = transfer.id().to_owned();
        if let Some(reader) = transfer.reader()
            && let Some(client) = self.clients.get_mut(&reader.client)
        {
            client.send(reader.stream, PayloadMessage::Error(error));
            client.close_stream(reader.stream);
        }
        self.executions.remove(&id);
    }

    /// Ends the file transfers of a client that has left. What extracts an archive sees that it ends early,
    /// and removes the part of a file that it has written.
    pub(super) fn end_transfers(&mut self, client_id: u64) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        for execution in self.executions.all() {
            let reader = execution.reader();
            if reader.is_some_and(|reader| reader.client == client_id) {
                let end = match execution.transfer() {
                    Some(Transfer::Put) => HostMessage::CloseStdin,
                    Some(Transfer::Get) => HostMessage::signal(SIGKILL),
                    None => continue,
                };
                let _ = connection.send(execution.stream(), end);
            }
        }
    }
}
