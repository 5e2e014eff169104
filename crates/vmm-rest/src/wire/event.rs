use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::BoxResponse;

/// The kind of a [`BoxEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BoxChange {
    /// The box was created.
    Created,
    /// The shim was spawned; its payload is not ready yet.
    Starting,
    /// The payload runs.
    Started,
    /// A stop or a removal cancelled the start, or the restart that was due.
    Cancelled,
    /// The payload is frozen.
    Paused,
    /// The payload continues.
    Resumed,
    /// The box ended on request, or by itself with code 0.
    Stopped,
    /// The box could not be started, or ended in any other way.
    Failed,
    /// The result of the health check changed.
    Health,
    /// The box was removed.
    Removed,
    /// A change that only a newer server knows.
    #[serde(other)]
    Other,
}

/// A change of a box, and the state of the box right after it: the data of an event of
/// `GET /v1/events`. The name of the event is the change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct BoxEvent {
    /// What changed.
    pub change: BoxChange,
    /// When the server published the event.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The state of the box after the change.
    #[serde(rename = "box")]
    pub state: BoxResponse,
}

impl BoxChange {
    /// Returns the name of the change on the wire, which is also the name of the event.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Cancelled => "cancelled",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Health => "health",
            Self::Removed => "removed",
            Self::Other => "other",
        }
    }
}

#[cfg(feature = "server")]
impl From<vmm_runtime::BoxChange> for BoxChange {
    fn from(change: vmm_runtime::BoxChange) -> Self {
        use vmm_runtime::BoxChange as Change;
        match change {
            Change::Created => Self::Created,
            Change::Starting => Self::Starting,
            Change::Started => Self::Started,
            Change::Cancelled => Self::Cancelled,
            Change::Paused => Self::Paused,
            Change::Resumed => Self::Resumed,
            Change::Stopped => Self::Stopped,
            Change::Failed => Self::Failed,
            Change::Health => Self::Health,
            Change::Removed => Self::Removed,
            _ => Self::Other,
        }
    }
}

#[cfg(feature = "server")]
impl From<vmm_runtime::BoxEvent> for BoxEvent {
    fn from(event: vmm_runtime::BoxEvent) -> Self {
        Self {
            change: event.change.into(),
            at: Timestamp::now(),
            state: event.info.into(),
        }
    }
}

/// The data of the event `lagged` of `GET /v1/events`: the reader was too slow, and the server has
/// skipped events. List the boxes again; the events that follow are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct EventsLost {
    /// The number of skipped events.
    pub missed: u64,
}

impl EventsLost {
    /// The name of the event.
    pub const NAME: &str = "lagged";

    #[cfg(feature = "server")]
    pub(crate) fn new(missed: u64) -> Self {
        Self { missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_serializes_to_its_name() {
        use BoxChange::{
            Cancelled, Created, Failed, Health, Other, Paused, Removed, Resumed, Started, Starting,
            Stopped,
        };
        for change in [
            Created, Starting, Started, Cancelled, Paused, Resumed, Stopped, Failed, Health,
            Removed, Other,
        ] {
            let wire = serde_json::to_value(change).unwrap();
            assert_eq!(wire, change.name());
        }
    }

    #[test]
    fn an_unknown_change_is_read_as_other() {
        let change: BoxChange = serde_json::from_str(r#""teleported""#).unwrap();
        assert_eq!(change, BoxChange::Other);
    }
}
