use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::{self, Code, context};
use tokio::time::sleep;

use super::EventQueue;
use crate::log;

const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// The time in which clients of a containerd that has just started subscribe to its events again. It keeps no event for them.
pub(crate) const SUBSCRIBE_TIME: Duration = Duration::from_secs(2);

/// A request without a timeout, in nanoseconds.
const NO_TIMEOUT: i64 = 0;

impl EventQueue {
    /// Sends the events to the ttrpc address of containerd, in their order. Never returns.
    ///
    /// An event is sent again after the connection has failed, and after an error of containerd, which can be passing.
    /// A containerd that does not respond, but keeps the connection, has the event in its socket: sent again, it would
    /// be reported twice. A new connection is that of a containerd that has been restarted: it gets the events after
    /// [`SUBSCRIBE_TIME`]. An event that containerd finds invalid would keep back all later ones: it is removed.
    ///
    /// # Cancel safety
    ///
    /// Loses no event. One that containerd has received and not acknowledged will be sent again.
    pub(crate) async fn forward(&self, address: &str) {
        let address = format!("unix://{}", address.trim_start_matches("unix://"));
        let mut backoff = MIN_BACKOFF;
        let mut client = None;
        let mut is_restart = false;
        let mut refused = None;
        loop {
            let (number, envelope) = self.first().await;
            let topic = envelope.topic.clone();
            let delay = if is_restart {
                SUBSCRIBE_TIME
            } else {
                Duration::ZERO
            };
            let error = match send(&address, &mut client, delay, envelope).await {
                Ok(()) => {
                    self.remove(number);
                    backoff = MIN_BACKOFF;
                    continue;
                }
                Err(error) => error,
            };
            if let ttrpc::Error::RpcStatus(status) = &error {
                let message = &status.message;
                if status.code() == Code::INVALID_ARGUMENT {
                    log(format_args!(
                        "containerd rejects the event {topic}: {message}"
                    ));
                    self.remove(number);
                    continue;
                }
                if refused.replace(number) != Some(number) {
                    log(format_args!(
                        "containerd does not take the event {topic}, which is sent again: {message}"
                    ));
                }
            } else {
                client = None;
                is_restart = true;
            }
            self.retry_save();
            sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }
}

/// Sends an event. Waits for the delay after it has connected, if there is no connection.
async fn send(
    address: &str,
    client: &mut Option<EventsClient>,
    delay: Duration,
    envelope: Envelope,
) -> ttrpc::Result<()> {
    let client = match client {
        Some(client) => client,
        None => {
            let connection = Client::connect(address).await?;
            sleep(delay).await;
            client.insert(EventsClient::new(connection))
        }
    };
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    let context = context::with_timeout(NO_TIMEOUT);
    client.forward(context, &request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    /// A containerd that rejects one topic, and fails once with each other event.
    #[derive(Default)]
    struct Containerd {
        requests: Mutex<Vec<String>>,
    }

    const TIMEOUT: Duration = Duration::from_secs(60);

    const INVALID: &str = "/tasks/oom";

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let topic = request.envelope.topic.clone();
            let mut requests = self.requests.lock().unwrap();
            let is_first = !requests.contains(&topic);
            requests.push(topic.clone());
            let code = match (topic == INVALID, is_first) {
                (true, _) => Code::INVALID_ARGUMENT,
                (false, true) => Code::UNKNOWN,
                (false, false) => return Ok(Empty::new()),
            };
            Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "no")))
        }
    }

    /// Serves a containerd at a path, in place of an earlier one.
    async fn serve(path: &Path, containerd: &Arc<Containerd>) -> Server {
        let _ = fs::remove_file(path);
        let server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .unwrap();
        let mut server = server.register_service(create_events(containerd.clone()));
        server.start().await.unwrap();
        server
    }

    #[tokio::test]
    async fn a_containerd_that_was_restarted_gets_events_when_its_clients_have_subscribed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let containerd = Arc::new(Containerd::default());
        let mut server = serve(&path, &containerd).await;
        let queue = Arc::new(EventQueue::open(dir.path().join("events"), "default").unwrap());
        let forward = tokio::spawn({
            let (queue, path) = (Arc::clone(&queue), path.clone());
            async move { queue.forward(path.to_str().unwrap()).await }
        });
        queue.publish_out_of_memory("c");
        assert!(queue.wait_empty(TIMEOUT).await);
        server.shutdown().await.unwrap();
        queue.publish_out_of_memory("c");
        let start = Instant::now();
        let mut server = serve(&path, &containerd).await;
        assert!(queue.wait_empty(TIMEOUT).await);
        assert!(start.elapsed() >= SUBSCRIBE_TIME, "{:?}", start.elapsed());
        assert_eq!(*containerd.requests.lock().unwrap(), [INVALID; 2]);
        forward.abort();
        server.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn an_event_that_containerd_rejects_is_removed_and_others_are_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let containerd = Arc::new(Containerd::default());
        let mut server = serve(&path, &containerd).await;
        let queue = EventQueue::open(dir.path().join("events"), "default").unwrap();
        queue.publish_out_of_memory("c");
        queue.publish_paused("c", true);
        tokio::select! {
            is_empty = queue.wait_empty(TIMEOUT) => assert!(is_empty),
            () = queue.forward(path.to_str().unwrap()) => {}
        }
        let requests = containerd.requests.lock().unwrap().clone();
        assert_eq!(requests, [INVALID, "/tasks/paused", "/tasks/paused"]);
        server.shutdown().await.unwrap();
    }
}
