use std::error::Error;
use std::time::Duration;

use crate::wire::{ErrorCode, ErrorModel};

/// Why a request was not answered, or not as it was hoped for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It cannot be the address of a server.
    #[error("{url:?} cannot be used: {reason}; try http://HOST:PORT")]
    Address {
        /// As it was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// It cannot be the name or id of a box.
    #[error("{wanted:?} cannot be the name of a box")]
    Name {
        /// As it was given.
        wanted: String,
    },
    /// Nobody listens there.
    #[error("no server answers at {at}: {}; is it running?", root_of(source))]
    Unreachable {
        /// The socket or the address.
        at: String,
        /// What the system says.
        source: reqwest::Error,
    },
    /// The connection broke, or the answer took too long: the request may have been done or not.
    #[error("the server at {at} did not finish its answer: {}", root_of(source))]
    Interrupted {
        /// The socket or the address.
        at: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// Nothing is heard of a stream that never falls silent for so long: the server hangs, or the
    /// way to it is cut.
    #[error("nothing has been heard of the server at {at} for {seconds} s")]
    StreamIdle {
        /// The socket or the address.
        at: String,
        /// For how long.
        seconds: u64,
    },
    /// The server says no, and why.
    #[error("{}", error.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The reason.
        error: ErrorModel,
    },
    /// It answers, but not as a server of this API does.
    #[error("{at} answers with status {status}, and not as this API does: {reason}")]
    UnexpectedResponse {
        /// The socket or the address.
        at: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with the answer.
        reason: String,
    },
    /// This reader of events was too slow. List the boxes anew; the stream goes on.
    #[error("{missed} events were missed")]
    EventsMissed {
        /// How many.
        missed: u64,
    },
}

/// What lies at the bottom of it; the rest only says that a request failed.
fn root_of(error: &reqwest::Error) -> String {
    let mut root: &dyn Error = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string()
}

impl ClientError {
    pub(super) fn silent(at: &str, silence: Duration) -> Self {
        Self::StreamIdle {
            at: at.to_owned(),
            seconds: silence.as_secs(),
        }
    }

    /// What the server says is wrong, if it does.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { error, .. } => Some(error.code),
            _ => None,
        }
    }
}
