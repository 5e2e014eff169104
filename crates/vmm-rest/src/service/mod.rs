//! The server: listeners, connections, and the processing of requests and responses.

mod acceptor;
mod access;
mod api_error;
mod attach;
mod authenticate;
mod box_spec;
mod connection;
mod connection_limits;
mod draining_stream;
mod extract;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod idempotency;
mod idempotency_journal;
mod key_table;
mod limits;
mod listen_error;
mod listener;
mod openapi;
mod openmetrics;
mod paging;
mod recorded_response;
mod request_body;
mod response;
mod routes;
mod server;
mod socket_file;
mod state;
mod write_timeout;

use acceptor::Acceptor;
use access::Access;
pub use access::RouterAccess;
use api_error::ApiError;
use box_spec::box_spec;
use connection::{Connection, ConnectionCloser};
use connection_limits::{ConnectionLimits, ConnectionSlot};
use draining_stream::DrainingStream;
use idempotency::IdempotencyKeys;
pub use limits::Limits;
pub use listen_error::ListenError;
pub use listener::Listener;
pub use server::Server;
use state::ApiState;
use write_timeout::{WriteTimeout, WriteTimeoutSwitch};

use crate::wire::ErrorCode;

/// Runs `work`, which blocks on the disk.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // It has panicked, or the tokio runtime shuts down.
        Err(error) => Err(ApiError::new(ErrorCode::Internal, error.to_string())),
    }
}

/// Returns the OpenAPI document of the API that a [`Server`] serves, as JSON. It is generated from
/// the handlers and types, and is also the response of `GET /v1/openapi.json`.
pub fn openapi() -> String {
    openapi::to_json(&routes::all(&IdempotencyKeys::default()).1)
}
