use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Principal {
    /// Opaque.
    pub sub: String,
    /// What kind of identity.
    pub principal_type: PrincipalType,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub display_name: Option<String>,
    /// What belongs between `/v1/` and `boxes` in paths; `null`, for this server has one tenant.
    #[serde(default)]
    pub path_prefix: Option<String>,
    /// What is allowed.
    pub scopes: Vec<String>,
    /// When the credential expires; `null`: never.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// What kind of identity a [`Principal`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalType {
    /// The user that the server runs as, at its Unix socket.
    User,
    /// Whoever has the token.
    ServiceAccount,
}

impl Principal {
    pub(crate) fn new(principal_type: PrincipalType, sub: &str, display_name: &str) -> Self {
        let scopes = ["boxes:read", "boxes:write", "metrics:read"];
        Self {
            sub: sub.to_owned(),
            principal_type,
            display_name: Some(display_name.to_owned()),
            path_prefix: None,
            scopes: scopes.map(str::to_owned).to_vec(),
            expires_at: None,
        }
    }
}
