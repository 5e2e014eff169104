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
