//! The parts of a [`CreateBoxRequest`](super::CreateBoxRequest).

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Advanced options of a box.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreateBoxAdvancedOptions {
    /// Changes to the payload's Linux capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
}

/// Changes to the Linux capabilities of a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = CreateContainerCapabilities)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// Capabilities to add.
    pub add: Vec<String>,
    /// Capabilities to remove.
    pub drop: Vec<String>,
}

/// The network of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Whether the box has a network.
    pub mode: NetworkMode,
    /// The hosts that the box may reach; all hosts if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_net: Vec<String>,
}

/// Whether a box has a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The box has a network.
    Enabled,
    /// The box has no network.
    Disabled,
}

/// A secret that is inserted into outgoing requests of a box.
///
/// Its `Debug` form shows only the name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretSpec {
    /// The name of the secret, for display.
    pub name: String,
    /// The secret itself.
    pub value: String,
    /// The hosts that the secret may be sent to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The text that the payload writes in place of the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<String>,
}

impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretSpec")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How strictly a box is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecurityPreset {
    /// As little isolation as possible.
    Development,
    /// The isolation that the engine provides by default.
    Standard,
    /// As much isolation as possible.
    Maximum,
}

/// A directory of the host that is mounted into the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeSpec {
    /// The path on the host.
    pub host_path: String,
    /// The path in the box.
    pub guest_path: String,
    /// Whether the box can only read it.
    #[serde(default)]
    pub read_only: bool,
}
