use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::ClientError;
use super::response::ServerResponse;

/// The output of a box, in chunks: see [`Client::logs`](super::Client::logs).
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream does not lose output.
#[must_use = "streams do nothing unless polled"]
pub struct BoxLogs(BoxStream<'static, Result<Vec<u8>, ClientError>>);

impl BoxLogs {
    pub(super) fn new(response: ServerResponse) -> Self {
        Self(response.chunks())
    }
}

impl Stream for BoxLogs {
    type Item = Result<Vec<u8>, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for BoxLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxLogs").finish_non_exhaustive()
    }
}
