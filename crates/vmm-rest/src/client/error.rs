use std::time::Duration;

use crate::wire::{ErrorCode, ErrorModel};

/// Why a request of a [`Client`](crate::Client) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address of the server is invalid.
    #[error("{url:?} is not a valid server address: {reason}; try http://HOST:PORT")]
    Address {
        /// The address, without user, password and query.
        url: String,
        /// What is wrong with the address.
        reason: String,
    },
    /// The text cannot be the name or id of a box.
    #[error("{wanted:?} cannot be the name of a box")]
    Name {
        /// The text.
        wanted: String,
    },
    /// The client cannot connect to the server.
    #[error("cannot connect to the server at {at}; is it running?")]
    Unreachable {
        /// The socket or address of the server.
        at: String,
        /// The error of the connection.
        source: reqwest::Error,
    },
    /// The connection broke, or the response took too long. The server may have executed the request.
    #[error("the connection to the server at {at} was interrupted")]
    Interrupted {
        /// The socket or address of the server.
        at: String,
        /// The error of the connection.
        source: reqwest::Error,
    },
    /// The WebSocket of an execution broke. The execution may go on.
    #[error("the connection to the server at {at} was interrupted; attach to the execution again")]
    Disconnected {
        /// The socket or address of the server.
        at: String,
        /// The error of the connection.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server has sent nothing on an event stream for too long, not even a keep-alive: it hangs, or
    /// the network is interrupted.
    #[error("the server at {at} has sent nothing for {seconds} s")]
    StreamIdle {
        /// The socket or address of the server.
        at: String,
        /// How long the server has sent nothing.
        seconds: u64,
    },
    /// The server responded with an error.
    #[error("{}", error.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error.
        error: ErrorModel,
    },
    /// The response does not conform to this API.
    #[error("{at} does not respond like a server of this API (status {status}): {reason}")]
    UnexpectedResponse {
        /// The socket or address of the server.
        at: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with the response.
        reason: String,
    },
    /// The reader of events was too slow and missed some. List the boxes again; the stream continues.
    #[error("{missed} events were missed")]
    EventsMissed {
        /// The number of missed events.
        missed: u64,
    },
}

impl ClientError {
    pub(super) fn stream_idle(at: &str, timeout: Duration) -> Self {
        Self::StreamIdle {
            at: at.to_owned(),
            seconds: timeout.as_secs(),
        }
    }

    /// Returns the code of the error that the server responded with; `None` for all other errors.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { error, .. } => Some(error.code),
            _ => None,
        }
    }

    /// Returns the exit code for a command that the server could not start; `None` for all other errors.
    /// See [`ErrorModel::exit_code`].
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Refused { error, .. } => error.exit_code,
            _ => None,
        }
    }
}
