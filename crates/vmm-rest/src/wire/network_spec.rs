use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The network of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Whether there is one.
    pub mode: NetworkMode,
    /// Where it may reach; everywhere if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_net: Vec<String>,
}

/// Whether a box has a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// It has one.
    Enabled,
    /// It has none.
    Disabled,
}
