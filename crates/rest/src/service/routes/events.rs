use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::service::{ApiError, ApiState};
use crate::wire::{BoxEvent, ErrorCode, ErrorResponse, EventsLost};

/// Every change of every box from now on, as server-sent events: named by the change, or `lagged`
/// when the reader was too slow and has missed some.
#[utoipa::path(
    get, path = "/v1/events", tag = "Boxes", operation_id = "streamEvents",
    responses(
        (status = 200, description = "Events, each with a box in its data", body = BoxEvent,
            content_type = "text/event-stream"),
        (status = 429, description = "There are too many readers", body = ErrorResponse),
    ),
)]
pub(super) async fn stream(
    State(api): State<ApiState>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let permit = api.event_readers.try_acquire_owned().map_err(|_| {
        ApiError::new(
            ErrorCode::ResourceExhausted,
            "there are too many readers of events",
        )
    })?;
    let events = stream::unfold(
        (api.events.subscribe(), permit),
        async |(mut events, permit)| {
            let event = next(&mut events).await?;
            Some((event, (events, permit)))
        },
    );
    let until_closing = events.take_until(api.closing.cancelled_owned());
    Ok(Sse::new(until_closing.map(Ok)).keep_alive(KeepAlive::default()))
}

async fn next(events: &mut Receiver<Arc<BoxEvent>>) -> Option<Event> {
    let told = match events.recv().await {
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
        drop(sender);
        let mut told = Vec::new();
        while let Some(event) = next(&mut receiver).await {
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
