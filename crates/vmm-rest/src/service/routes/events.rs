use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::Method;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::service::{ApiError, ApiState, Connection, ConnectionCloser};
use crate::wire::{BoxEvent, ErrorResponse, EventsLost};

/// Streams the changes of all boxes from now on as server-sent events. The name of an event is the
/// change, or `lagged` if the reader was too slow and has missed events. The stream ends when the
/// client closes its connection or shuts down its side of it.
#[utoipa::path(
    get, path = "/v1/events", tag = "Boxes", operation_id = "streamEvents",
    responses(
        (status = 200, description = "Events, each with the state of a box", body = BoxEvent,
            content_type = "text/event-stream"),
        (status = 429, description = "Too many streams are open", body = ErrorResponse),
    ),
)]
pub(super) async fn stream(
    method: Method,
    State(api): State<ApiState>,
    closer: Option<Extension<ConnectionCloser>>,
    client: Option<Extension<Weak<Connection>>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let reader = if method == Method::HEAD {
        None
    } else {
        let closer = closer.map(|Extension(closer)| closer);
        let client = client.map(|Extension(client)| client);
        Some(Reader::new(&api, closer, client).await?)
    };
    let events = stream::unfold(reader, async |reader| {
        let mut reader = reader?;
        let end = async {
            tokio::select! {
                () = reader.closing.cancelled() => {}
                () = client_left(reader.client.as_ref()) => {}
            }
        };
        let event = next_event(&mut reader.events, end).await?;
        Some((Ok(event), Some(reader)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// How long a client that does not read its events can delay the shutdown.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// How long a new reader waits for a free slot: the server may not yet have noticed that another
/// reader has left.
const READER_SLOT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that reads events, until it leaves or the server shuts down.
struct Reader {
    events: Receiver<Arc<BoxEvent>>,
    closing: CancellationToken,
    /// `None` on a connection of another application's server.
    client: Option<Weak<Connection>>,
    /// Closes the connection on shutdown, since a stream that the client does not read is not polled
    /// and cannot end.
    _close_task: Option<AbortOnDropHandle<()>>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    async fn new(
        api: &ApiState,
        closer: Option<ConnectionCloser>,
        client: Option<Weak<Connection>>,
    ) -> Result<Self, ApiError> {
        let permit = Arc::clone(&api.streams).acquire_owned();
        let Ok(Ok(permit)) = timeout(READER_SLOT_TIMEOUT, permit).await else {
            return Err(ApiState::too_many_streams());
        };
        let closing = api.closing.clone();
        Ok(Self {
            events: api.events.subscribe(),
            _close_task: close_on_shutdown(closer, &closing),
            closing,
            client,
            _permit: permit,
        })
    }
}

/// Closes the connection on shutdown, also if its client does not read the response.
pub(super) fn close_on_shutdown(
    closer: Option<ConnectionCloser>,
    closing: &CancellationToken,
) -> Option<AbortOnDropHandle<()>> {
    let task = closer?.close_after(closing.clone(), CLOSE_GRACE);
    Some(AbortOnDropHandle::new(tokio::spawn(task)))
}

/// Waits until the client has left. Without this, the server would notice it only at the next event.
/// Never returns on a connection of another application's server, which notices it itself.
pub(super) async fn client_left(client: Option<&Weak<Connection>>) {
    let Some(client) = client else {
        return pending().await;
    };
    if let Some(connection) = client.upgrade() {
        connection.left().await;
    }
}

/// Waits for the next event, or for `end`. Events that have happened before the end are returned
/// first.
async fn next_event(
    events: &mut Receiver<Arc<BoxEvent>>,
    end: impl Future<Output = ()>,
) -> Option<Event> {
    let event = tokio::select! {
        biased;
        event = events.recv() => event,
        () = end => return None,
    };
    let encoded = match event {
        Ok(event) => Event::default()
            .event(event.change.name())
            .json_data(&*event),
        Err(RecvError::Lagged(missed)) => Event::default()
            .event(EventsLost::NAME)
            .json_data(EventsLost::new(missed)),
        Err(RecvError::Closed) => return None,
    };
    // Cannot fail: every value of these types is valid JSON.
    encoded.ok()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::response::IntoResponse;
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_gets_the_number_of_missed_events_and_continues() {
        let (sender, mut receiver) = broadcast::channel(2);
        for i in 0..5 {
            let event = serde_json::json!({
                "change": "created", "at": "2026-01-02T03:04:05Z",
                "box": {
                    "box_id": format!("b{i}"), "status": "configured", "image": "idle", "cpus": 1,
                    "memory_mib": 512, "created_at": "2026-01-02T03:04:05Z",
                    "updated_at": "2026-01-02T03:04:05Z",
                },
            });
            sender
                .send(Arc::new(serde_json::from_value(event).unwrap()))
                .unwrap();
        }
        let closing = CancellationToken::new();
        closing.cancel();
        let mut events = Vec::new();
        while let Some(event) = next_event(&mut receiver, closing.cancelled()).await {
            events.push(Ok::<_, Infallible>(event));
        }
        let body = Sse::new(stream::iter(events)).into_response().into_body();
        let text = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().into()).unwrap();
        assert!(
            text.starts_with("event: lagged\ndata: {\"missed\":3}\n\nevent: created\n"),
            "{text}"
        );
        assert!(
            text.contains("b3") && text.contains("b4") && !text.contains("b2"),
            "{text}"
        );
    }
}
