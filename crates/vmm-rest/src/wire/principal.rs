use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PrincipalType {
    /// The user that the server runs as, at its Unix socket.
    User,
    /// Whoever has the token.
    ServiceAccount,
    /// Something that only a newer server knows.
    #[serde(other)]
    Other,
}

// Not derived: it has no `other`, which no server answers and the public API does not have.
impl PartialSchema for PrincipalType {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("What kind of identity a principal is."))
            .enum_values(Some(["user", "service_account"]))
            .into()
    }
}

impl ToSchema for PrincipalType {}

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
    fn a_principal_of_a_newer_server_is_read_as_other() {
        let least = r#"{"sub": "x", "principal_type": "robot", "scopes": []}"#;
        let read: Principal = serde_json::from_str(least).unwrap();
        assert_eq!(read.principal_type, PrincipalType::Other);
        assert!(serde_json::to_string(&read).is_ok());
    }
}
