use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmm_runtime::BoxInfo;

use super::box_size::{DEFAULT_CPUS, DEFAULT_MEMORY_MIB};
use super::{BoxStatus, Health};
use crate::images::Origin;

/// A box at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Box)]
#[non_exhaustive]
pub struct BoxResponse {
    /// Given by the server; opaque.
    #[schema(
        min_length = 1,
        max_length = 128,
        example = "01HJK4TNRPQSXYZ8WM6NCVT9R5"
    )]
    pub box_id: String,
    /// Given by the user, unique.
    #[serde(default)]
    pub name: Option<String>,
    /// Where it is in its life.
    pub status: BoxStatus,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its status last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// The process that the box runs in, its shim, while it runs.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The entry of the server's image table that it was made from.
    pub image: String,
    /// Virtual processors; 1 where it has no limit, for clients are always told a size. Of a box
    /// that was not made by the server, they may be more.
    #[schema(minimum = 1, maximum = 32)]
    pub cpus: u32,
    /// Memory in MiB; 512 where it has no limit. Of a box that was not made by the server, it may
    /// be less.
    #[schema(minimum = 128)]
    pub memory_mib: u32,
    /// The user's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Idle seconds before it is paused; 0, for this server pauses none.
    #[serde(default)]
    pub auto_pause: u64,
    /// Seconds from its stop to its removal; 0, for this server removes none by itself.
    #[serde(default)]
    pub auto_delete: u64,
    /// Whether it is resumed when it is used.
    #[serde(default)]
    pub auto_resume: bool,
    /// What its health check says, if it has one.
    #[serde(default)]
    #[schema(nullable)]
    pub health: Option<Health>,
    /// The payload's own process, while it runs.
    #[serde(default)]
    pub payload_pid: Option<u32>,
    /// How the last run ended: the code, or 128 + signal.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The signal that ended the last run, if one did.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Whether it outlives the server.
    #[serde(default)]
    pub detach: bool,
    /// When it last began to run, if this server saw it.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
}

impl From<BoxInfo> for BoxResponse {
    fn from(info: BoxInfo) -> Self {
        let status = (&info).into();
        let mut labels = info.labels;
        let image = Origin::take_from(&mut labels).into_name();
        Self {
            box_id: info.id,
            name: info.name,
            status,
            created_at: info.created_at,
            updated_at: info.updated_at,
            pid: info.pid,
            image,
            cpus: info.cpus.unwrap_or(DEFAULT_CPUS),
            memory_mib: info.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB),
            labels,
            auto_pause: 0,
            auto_delete: 0,
            auto_resume: true,
            health: info.health.map(Into::into),
            payload_pid: info.payload_pid,
            exit_code: info.exit_code,
            signal: info.signal,
            error: info.error,
            detach: info.detached,
            started_at: info.started_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_of_a_server_that_sends_only_what_it_must_is_read() {
        let least = r#"{
            "box_id": "aB3cD4eF5gH6", "status": "paused", "image": "python:3.11-slim",
            "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05.678+00:00",
            "cpus": 2, "memory_mib": 512, "of_a_newer_server": {"x": 1}
        }"#;
        let read: BoxResponse = serde_json::from_str(least).unwrap();
        assert_eq!(read.status, BoxStatus::Paused);
        assert_eq!((read.pid, read.exit_code, read.detach), (None, None, false));
    }
}
