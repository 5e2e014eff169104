use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
#[cfg(feature = "server")]
use vmm_runtime::BoxInfo;

use super::{BoxChange, BoxStatus, Health};
#[cfg(feature = "server")]
use super::{DEFAULT_CPUS, DEFAULT_MEMORY_MIB};

/// The state of a box at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Box)]
#[non_exhaustive]
pub struct BoxResponse {
    /// The id of the box: opaque, assigned by the server.
    #[schema(
        min_length = 1,
        max_length = 128,
        example = "01HJK4TNRPQSXYZ8WM6NCVT9R5"
    )]
    pub box_id: String,
    /// The name of the box, if the client gave it one; unique.
    #[serde(default)]
    pub name: Option<String>,
    /// The stage of the box's life.
    pub status: BoxStatus,
    /// When the box was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When the status last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Whether a start is in progress. The status is then `configured`, because the public API has
    /// none for it, whether or not the box has run before.
    #[serde(default)]
    pub starting: bool,
    /// The pid of the shim while the box starts, as soon as there is one, or runs.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The name of the image that the box was created from.
    pub image: String,
    /// Virtual processors; 1 for a box without a limit, since the public API requires a value. A
    /// box that was not created through the API can exceed the maximum.
    #[schema(minimum = 1, maximum = 32)]
    pub cpus: u32,
    /// Memory in MiB; 512 for a box without a limit. A box that was not created through the API can
    /// have less than the minimum.
    #[schema(minimum = 128)]
    pub memory_mib: u32,
    /// Labels of the box.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Idle seconds before the server pauses the box; always 0, this server does not pause boxes.
    #[serde(default)]
    pub auto_pause: u64,
    /// Seconds between stop and automatic removal; always 0, see `auto_remove`.
    #[serde(default)]
    pub auto_delete: u64,
    /// Whether a paused box is resumed when it is used.
    #[serde(default)]
    pub auto_resume: bool,
    /// The result of the health check, if the box has one.
    #[serde(default)]
    #[schema(nullable)]
    pub health: Option<Health>,
    /// The pid of the payload while the box runs.
    #[serde(default)]
    pub payload_pid: Option<u32>,
    /// The user of the VMM of a guest, if the box has one of its own.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The confinement rules that are not applied to the box while it runs, each with the reason. `null`
    /// if it does not run, or if an earlier server has started it.
    #[serde(default)]
    #[schema(nullable)]
    pub unapplied_rules: Option<BTreeMap<String, String>>,
    /// The exit code of the last run, or 128 + signal.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The signal that ended the last run, if one did.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Why the last run failed.
    #[serde(default)]
    pub error: Option<String>,
    /// The last lines that the payload printed, up to 4 KiB, if the last start failed.
    #[serde(default)]
    pub last_output: Option<String>,
    /// Whether the box outlives the server.
    #[serde(default)]
    pub detach: bool,
    /// When the server starts the box again after it has ended; see `CreateBoxRequest`.
    #[serde(default)]
    pub restart_policy: String,
    /// The restarts by the policy since the last start by a client, including one that is due.
    #[serde(default)]
    pub restarts: u32,
    /// Whether a restart by the policy is due or in progress.
    #[serde(default)]
    pub restarting: bool,
    /// Whether the server removes the box when it has ended.
    #[serde(default)]
    pub auto_remove: bool,
    /// When the last run started, if this server observed it.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
}

impl BoxResponse {
    /// Returns the name of the stage that the box is in: `starting` during a start, otherwise that
    /// of its [`status`](Self::status).
    pub fn stage(&self) -> &'static str {
        if self.starting {
            BoxChange::Starting.name()
        } else {
            self.status.name()
        }
    }

    /// Returns whether the box is starting, or its payload [is alive](BoxStatus::is_alive).
    pub fn is_alive(&self) -> bool {
        self.starting || self.status.is_alive()
    }
}

/// The image of a box that was not created through the API.
#[cfg(feature = "server")]
const UNKNOWN_IMAGE: &str = "unknown";

#[cfg(feature = "server")]
impl From<BoxInfo> for BoxResponse {
    fn from(info: BoxInfo) -> Self {
        let status = (&info).into();
        Self {
            box_id: info.id.into(),
            name: info.name,
            status,
            created_at: info.created_at,
            updated_at: info.updated_at,
            starting: info.status == vmm_runtime::BoxStatus::Starting,
            pid: info.pid,
            image: info.image.unwrap_or_else(|| UNKNOWN_IMAGE.to_owned()),
            cpus: info.cpus.unwrap_or(DEFAULT_CPUS),
            memory_mib: info.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB),
            labels: info.labels,
            auto_pause: 0,
            auto_delete: 0,
            auto_resume: true,
            health: info.health.map(Into::into),
            payload_pid: info.payload_pid,
            uid: info.uid,
            unapplied_rules: info.unapplied_rules.map(|rules| {
                let rules = rules.into_iter();
                rules
                    .map(|unapplied| (unapplied.rule.to_string(), unapplied.reason))
                    .collect()
            }),
            exit_code: info.exit_code,
            signal: info.signal,
            error: info.error,
            last_output: info.last_output,
            detach: info.detached,
            restart_policy: info.restart_policy.to_string(),
            restarts: info.restarts,
            restarting: info.restarting,
            auto_remove: info.auto_remove,
            started_at: info.started_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_with_only_the_required_fields_is_read() {
        let minimal = r#"{
            "box_id": "aB3cD4eF5gH6", "status": "paused", "image": "python:3.11-slim",
            "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05.678+00:00",
            "cpus": 2, "memory_mib": 512, "of_a_newer_server": {"x": 1}
        }"#;
        let read: BoxResponse = serde_json::from_str(minimal).unwrap();
        assert_eq!(read.status, BoxStatus::Paused);
        assert_eq!((read.pid, read.exit_code, read.detach), (None, None, false));
    }
}
