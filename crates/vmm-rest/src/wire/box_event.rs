use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::BoxResponse;

/// What happened to a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BoxChange {
    /// It exists.
    Created,
    /// Its payload runs.
    Started,
    /// It ended as asked, or by itself with code 0.
    Stopped,
    /// It could not be started, or ended in any other way.
    Failed,
    /// Its health check changed its mind.
    Health,
    /// It exists no more.
    Removed,
    /// Something that only a newer server knows.
    #[serde(other)]
    Other,
}

/// A change of a box, and what the box was like right after it: the data of an event of
/// `GET /v1/events`, whose name is the change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct BoxEvent {
    /// What happened.
    pub change: BoxChange,
    /// When the server told it.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The box then.
    #[serde(rename = "box")]
    pub state: BoxResponse,
}

impl BoxChange {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Health => "health",
            Self::Removed => "removed",
            Self::Other => "other",
        }
    }
}

impl From<vmm_runtime::BoxChange> for BoxChange {
    fn from(change: vmm_runtime::BoxChange) -> Self {
        use vmm_runtime::BoxChange as Change;
        match change {
            Change::Created => Self::Created,
            Change::Started => Self::Started,
            Change::Stopped => Self::Stopped,
            Change::Failed => Self::Failed,
            Change::Health => Self::Health,
            Change::Removed => Self::Removed,
            _ => Self::Other,
        }
    }
}

impl From<vmm_runtime::BoxEvent> for BoxEvent {
    fn from(event: vmm_runtime::BoxEvent) -> Self {
        Self {
            change: event.change.into(),
            at: Timestamp::now(),
            state: event.info.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_wire_form() {
        use BoxChange::{Created, Failed, Health, Other, Removed, Started, Stopped};
        for change in [Created, Started, Stopped, Failed, Health, Removed, Other] {
            let wire = serde_json::to_value(change).unwrap();
            assert_eq!(wire, change.name());
        }
    }

    #[test]
    fn a_change_of_a_newer_server_is_read_as_other() {
        let change: BoxChange = serde_json::from_str(r#""teleported""#).unwrap();
        assert_eq!(change, BoxChange::Other);
    }
}
