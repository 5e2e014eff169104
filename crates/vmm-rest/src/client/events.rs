use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use reqwest::Response;
use tokio::time::timeout;

use super::sse::{SentEvent, Sse};
use super::{Answer, ClientError};
use crate::wire::{BoxEvent, EventsLost};

/// Every change of every box from the moment of [`Client::events`](super::Client::events) on, in
/// order. Ends when the server does, or with an error when the connection breaks;
/// [`ClientError::EventsMissed`] is followed by more events.
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream loses no event.
#[must_use = "streams do nothing unless polled"]
pub struct BoxEvents(BoxStream<'static, Result<BoxEvent, ClientError>>);

struct Reading {
    at: String,
    response: Response,
    sse: Sse,
    events: VecDeque<SentEvent>,
    silence: Duration,
    over: bool,
}

impl BoxEvents {
    /// Over when nothing is heard for as long as `silence`.
    pub(super) fn new(answer: Answer, silence: Duration) -> Self {
        let reading = Reading {
            at: answer.at,
            response: answer.response,
            sse: Sse::default(),
            events: VecDeque::new(),
            silence,
            over: false,
        };
        Self(stream::unfold(reading, Reading::next).boxed())
    }
}

impl Reading {
    async fn next(mut self) -> Option<(Result<BoxEvent, ClientError>, Self)> {
        while !self.over {
            if let Some(event) = self.events.pop_front() {
                return Some((self.parse(&event), self));
            }
            match timeout(self.silence, self.response.chunk()).await {
                Ok(Ok(Some(piece))) => self.events.extend(self.sse.push(&piece)),
                Ok(Ok(None)) => self.over = true,
                Ok(Err(source)) => {
                    self.over = true;
                    let at = self.at.clone();
                    return Some((Err(ClientError::Interrupted { at, source }), self));
                }
                Err(_) => {
                    self.over = true;
                    let silent = ClientError::silent(&self.at, self.silence);
                    return Some((Err(silent), self));
                }
            }
        }
        None
    }

    fn parse(&self, event: &SentEvent) -> Result<BoxEvent, ClientError> {
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
