//! What a server reports about itself and its client.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// The configuration of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Values for the fields that a request omits.
    pub defaults: ServerDefaults,
    /// Values that the server applies to every box.
    pub overrides: BTreeMap<String, String>,
    /// Limits and features of the server.
    pub capabilities: ServerCapabilities,
}

/// The values for fields that a [`CreateBoxRequest`](super::CreateBoxRequest) omits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct ServerDefaults {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Seconds between stop and automatic removal; 0 for no removal.
    pub auto_delete: u64,
}

/// The limits and features of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct ServerCapabilities {
    /// The maximum number of virtual processors of a box.
    pub max_cpus: u32,
    /// The maximum memory of a box in MiB.
    pub max_memory_mib: u32,
    /// Whether a request can change the Linux capabilities of a box.
    pub linux_capabilities_enabled: bool,
    /// Whether boxes can have terminals.
    pub tty_enabled: bool,
    /// Whether the server streams output.
    pub streaming_enabled: bool,
    /// Whether the server supports snapshots.
    pub snapshots_enabled: bool,
    /// Whether boxes can be cloned.
    pub clone_enabled: bool,
    /// Whether boxes can be exported.
    pub export_enabled: bool,
    /// The supported values of `security`.
    pub supported_security_presets: Vec<String>,
    /// How long the server keeps an idempotency key, as an ISO 8601 duration.
    pub idempotency_key_lifetime: String,
}

/// Whether the server can run boxes: the response of `GET /readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Readiness {
    /// Whether the server can run boxes.
    pub ready: bool,
    /// Why the server is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The identity that the server has assigned to the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Principal {
    /// The opaque id of the identity.
    pub sub: String,
    /// The kind of the identity.
    pub principal_type: PrincipalType,
    /// The name of the identity, for display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub display_name: Option<String>,
    /// The path segment between `/v1/` and `boxes`; always `null`, this server has one tenant.
    #[serde(default)]
    pub path_prefix: Option<String>,
    /// The permissions of the identity.
    pub scopes: Vec<String>,
    /// When the credential expires; `null` if it does not expire.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// The kind of a [`Principal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PrincipalType {
    /// The user that the server runs as, connected to its Unix socket.
    User,
    /// A client that has presented the token.
    ServiceAccount,
    /// A kind that only a newer server knows.
    #[serde(other)]
    Other,
}

// Not derived: a server never sends `other`, and the public API does not have it.
impl PartialSchema for PrincipalType {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The kind of a principal."))
            .enum_values(Some(["user", "service_account"]))
            .into()
    }
}

impl ToSchema for PrincipalType {}

#[cfg(feature = "server")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_principal_type_is_read_as_other() {
        let minimal = r#"{"sub": "x", "principal_type": "robot", "scopes": []}"#;
        let read: Principal = serde_json::from_str(minimal).unwrap();
        assert_eq!(read.principal_type, PrincipalType::Other);
        assert!(serde_json::to_string(&read).is_ok());
    }
}
