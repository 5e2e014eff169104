use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// For experts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreateBoxAdvancedOptions {
    /// Linux capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
}

/// Linux capabilities of a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = CreateContainerCapabilities)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// To add.
    pub add: Vec<String>,
    /// To remove.
    pub drop: Vec<String>,
}
