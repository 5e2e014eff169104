use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use reqwest::Response;
use tokio::time::timeout;

use super::sse::{SseEvent, SseParser};
use super::{ClientError, ServerResponse};
use crate::wire::{BoxEvent, EventsLost};

/// The stream of changes of all boxes, in order, from the call of
/// [`Client::events`](super::Client::events) on.
///
/// The stream ends when the server shuts down. After an error it ends as well, except after
/// [`ClientError::EventsMissed`] and [`ClientError::UnexpectedResponse`].
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream does not lose events.
#[must_use = "streams do nothing unless polled"]
pub struct BoxEvents(BoxStream<'static, Result<BoxEvent, ClientError>>);

/// The state of the stream.
struct EventReader {
    at: String,
    response: Response,
    parser: SseParser,
    events: VecDeque<SseEvent>,
    idle_timeout: Duration,
    has_ended: bool,
}

impl BoxEvents {
    /// The stream ends with an error when the server sends nothing for `idle_timeout`.
    pub(super) fn new(response: ServerResponse, idle_timeout: Duration) -> Self {
        let reader = EventReader {
            at: response.at,
            response: response.response,
            parser: SseParser::default(),
            events: VecDeque::new(),
            idle_timeout,
            has_ended: false,
        };
        Self(stream::unfold(reader, EventReader::next).boxed())
    }
}

impl EventReader {
    async fn next(mut self) -> Option<(Result<BoxEvent, ClientError>, Self)> {
        while !self.has_ended {
            if let Some(event) = self.events.pop_front() {
                return Some((self.parse(&event), self));
            }
            match timeout(self.idle_timeout, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => self.events.extend(self.parser.push(&chunk)),
                Ok(Ok(None)) => self.has_ended = true,
                Ok(Err(source)) => {
                    self.has_ended = true;
                    let at = self.at.clone();
                    return Some((Err(ClientError::Interrupted { at, source }), self));
                }
                Err(_) => {
                    self.has_ended = true;
                    let error = ClientError::stream_idle(&self.at, self.idle_timeout);
                    return Some((Err(error), self));
                }
            }
        }
        None
    }

    fn parse(&self, event: &SseEvent) -> Result<BoxEvent, ClientError> {
        let parsed = match event.name.as_str() {
            EventsLost::NAME => serde_json::from_str(&event.data)
                .map(|EventsLost { missed }| Err(ClientError::EventsMissed { missed })),
            _ => serde_json::from_str(&event.data).map(Ok),
        };
        parsed.unwrap_or_else(|error| {
            Err(ClientError::UnexpectedResponse {
                at: self.at.clone(),
                status: self.response.status().as_u16(),
                reason: error.to_string(),
            })
        })
    }
}

impl Stream for BoxEvents {
    type Item = Result<BoxEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for BoxEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxEvents").finish_non_exhaustive()
    }
}
