use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The data of the event `lagged` of `GET /v1/events`: the reader was too slow, and the server has
/// skipped these events. List the boxes anew; what comes next is complete again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct EventsLost {
    /// How many.
    pub missed: u64,
}

impl EventsLost {
    /// The name of the event.
    pub const NAME: &str = "lagged";

    pub(crate) fn new(missed: u64) -> Self {
        Self { missed }
    }
}
