use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the server can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct ServerConfig {
    /// What a box gets unless the request says otherwise.
    pub defaults: ServerDefaults,
    /// What the server forces upon every box.
    pub overrides: BTreeMap<String, String>,
    /// Limits, and what there is.
    pub capabilities: ServerCapabilities,
}

/// What a box gets unless the request says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct ServerDefaults {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Seconds from its stop to its removal; 0: it stays.
    pub auto_delete: u64,
}

/// Limits, and what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct ServerCapabilities {
    /// Virtual processors per box.
    pub max_cpus: u32,
    /// Memory per box in MiB.
    pub max_memory_mib: u32,
    /// Whether Linux capabilities of a box can be chosen.
    pub linux_capabilities_enabled: bool,
    /// Whether there are terminals.
    pub tty_enabled: bool,
    /// Whether output is streamed.
    pub streaming_enabled: bool,
    /// Whether there are snapshots.
    pub snapshots_enabled: bool,
    /// Whether boxes can be cloned.
    pub clone_enabled: bool,
    /// Whether boxes can be exported.
    pub export_enabled: bool,
    /// What `security` may be.
    pub supported_security_presets: Vec<String>,
    /// How long an idempotency key is kept, an ISO 8601 duration.
    pub idempotency_key_lifetime: String,
}
