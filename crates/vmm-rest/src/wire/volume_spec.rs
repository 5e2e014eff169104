use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A directory of the host in the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeSpec {
    /// On the host.
    pub host_path: String,
    /// In the box.
    pub guest_path: String,
    /// Whether it cannot be written to.
    #[serde(default)]
    pub read_only: bool,
}
