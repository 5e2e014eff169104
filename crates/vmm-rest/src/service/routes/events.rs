use std::convert::Infallible;
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

use crate::service::{ApiError, ApiState, Connection, HangUp};
use crate::wire::{BoxEvent, ErrorCode, ErrorResponse, EventsLost};

/// Every change of every box from now on, as server-sent events: named by the change, or `lagged`
/// when the reader was too slow and has missed some. A reader that closes its connection, or only
/// its own side of it, has left.
#[utoipa::path(
    get, path = "/v1/events", tag = "Boxes", operation_id = "streamEvents",
    responses(
        (status = 200, description = "Events, each with a box in its data", body = BoxEvent,
            content_type = "text/event-stream"),
        (status = 429, description = "There are too many readers", body = ErrorResponse),
    ),
)]
pub(super) async fn stream(
    method: Method,
    State(api): State<ApiState>,
    Extension(hang_up): Extension<HangUp>,
    Extension(client): Extension<Weak<Connection>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    // Whoever asks for the head alone reads no events.
    let reader = match method {
        Method::HEAD => None,
        _ => Some(Reader::new(&api, hang_up, client).await?),
    };
    let events = stream::unfold(reader, async |reader| {
        let mut reader = reader?;
        let over = async {
            tokio::select! {
                () = reader.closing.cancelled() => {}
                () = left(&reader.client) => {}
            }
        };
        let event = next(&mut reader.events, over).await?;
        Some((Ok(event), Some(reader)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// How long a reader who has stopped reading may delay the server's end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a reader who comes may wait for one who leaves to be seen leaving.
const TURN: Duration = Duration::from_secs(5);

/// Somebody who reads the events, until they hang up or the server is to end.
struct Reader {
    events: Receiver<Arc<BoxEvent>>,
    closing: CancellationToken,
    client: Weak<Connection>,
    /// For a stream that nobody reads, and so does not see that the server is to end.
    _hang_up: AbortOnDropHandle<()>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    async fn new(
        api: &ApiState,
        hang_up: HangUp,
        client: Weak<Connection>,
    ) -> Result<Self, ApiError> {
        let permit = Arc::clone(&api.event_readers).acquire_owned();
        let Ok(Ok(permit)) = timeout(TURN, permit).await else {
            let message = "there are too many readers of events";
            return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
        };
        let closing = api.closing.clone();
        let hang_up = tokio::spawn(hang_up.after(closing.clone(), LAST_WORDS));
        Ok(Self {
            events: api.events.subscribe(),
            _hang_up: AbortOnDropHandle::new(hang_up),
            closing,
            client,
            _permit: permit,
        })
    }
}

/// Until the client has, also one that is told nothing: no write would find out.
async fn left(client: &Weak<Connection>) {
    if let Some(connection) = client.upgrade() {
        connection.left().await;
    }
}

/// What has happened is told even when it is over.
async fn next(
    events: &mut Receiver<Arc<BoxEvent>>,
    over: impl Future<Output = ()>,
) -> Option<Event> {
    let event = tokio::select! {
        biased;
        event = events.recv() => event,
        () = over => return None,
    };
    let told = match event {
        Ok(event) => Event::default()
            .event(event.change.name())
            .json_data(&*event),
        Err(RecvError::Lagged(missed)) => Event::default()
            .event(EventsLost::NAME)
            .json_data(EventsLost::new(missed)),
        Err(RecvError::Closed) => return None,
    };
    // Every value of these types is JSON.
    told.ok()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::response::IntoResponse;
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn a_reader_that_was_too_slow_is_told_how_much_it_missed_and_goes_on() {
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
        let mut told = Vec::new();
        while let Some(event) = next(&mut receiver, closing.cancelled()).await {
            told.push(Ok::<_, Infallible>(event));
        }
        let body = Sse::new(stream::iter(told)).into_response().into_body();
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
