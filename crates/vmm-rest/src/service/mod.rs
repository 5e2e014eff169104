//! The server's side: listeners, connections, and what is done with a request on its way in and out.

mod access;
mod answer;
mod api_error;
mod body;
mod closing;
mod connection;
mod document;
mod event_hub;
mod exposition;
mod extract;
mod front;
mod hang_up;
mod idempotency;
mod impatient;
mod limits;
mod listener;
mod new_box;
mod page;
mod procfs;
mod room;
mod routes;
mod server;
mod socket_file;
mod state;
mod usage;

use access::Access;
use api_error::ApiError;
use closing::Closing;
use connection::Connection;
use front::Front;
use hang_up::HangUp;
use impatient::Impatient;
pub use limits::Limits;
pub use listener::{ListenError, Listener};
use new_box::spec_of;
use room::{Place, Room};
pub use server::Server;
use state::ApiState;

/// The OpenAPI document of what a [`Server`] serves, made from its handlers and types: JSON, as
/// `GET /v1/openapi.json` answers it.
pub fn openapi() -> String {
    document::text(&routes::all().1)
}
