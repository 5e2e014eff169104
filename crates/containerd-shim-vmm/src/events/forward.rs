use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::{self, context};
use tokio::time::sleep;

use super::EventQueue;

const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// A request without a timeout, in nanoseconds.
const NO_TIMEOUT: i64 = 0;

impl EventQueue {
    /// Sends the events to the ttrpc address of containerd, in their order. Never returns.
    ///
    /// An event is sent again after the connection has failed. A containerd that does not respond, but keeps
    /// the connection, has the event in its socket: sent again, it would be reported twice.
    ///
    /// # Cancel safety
    ///
    /// Loses no event. One that containerd has received and not acknowledged will be sent again.
    pub(crate) async fn forward(&self, address: &str) {
        let address = format!("unix://{}", address.trim_start_matches("unix://"));
        let mut backoff = MIN_BACKOFF;
        let mut client = None;
        loop {
            let (number, envelope) = self.first().await;
            match send(&address, &mut client, envelope).await {
                Ok(()) => {
                    self.remove(number);
                    backoff = MIN_BACKOFF;
                }
                Err(_) => {
                    client = None;
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }
}

async fn send(
    address: &str,
    client: &mut Option<EventsClient>,
    envelope: Envelope,
) -> ttrpc::Result<()> {
    let client = match client {
        Some(client) => client,
        None => client.insert(EventsClient::new(Client::connect(address).await?)),
    };
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    let context = context::with_timeout(NO_TIMEOUT);
    client.forward(context, &request).await.map(drop)
}
