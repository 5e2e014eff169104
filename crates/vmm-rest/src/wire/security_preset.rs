use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How well a box is shut in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecurityPreset {
    /// As little as possible.
    Development,
    /// As the engine does.
    Standard,
    /// As well as possible.
    Maximum,
}
