use axum::Json;
use axum::extract::Extension;
use vmm_runtime::Image;

use crate::service::{Access, idempotency};
use crate::wire::{
    DEFAULT_CPUS, DEFAULT_MEMORY_MIB, Principal, ServerCapabilities, ServerConfig, ServerDefaults,
};

/// Returns the features and limits of the server. Needs no token.
#[utoipa::path(
    get, path = "/v1/config", tag = "Configuration", operation_id = "getConfig", security(()),
    responses((status = 200, description = "The configuration of the server", body = ServerConfig)),
)]
pub(super) async fn config() -> Json<ServerConfig> {
    Json(ServerConfig {
        defaults: ServerDefaults {
            cpus: DEFAULT_CPUS,
            memory_mib: DEFAULT_MEMORY_MIB,
            auto_delete: 0,
        },
        capabilities: ServerCapabilities {
            max_cpus: *Image::CPUS_RANGE.end(),
            max_memory_mib: *Image::MEMORY_MIB_RANGE.end(),
            supported_security_presets: ["development", "standard"].map(str::to_owned).to_vec(),
            idempotency_key_lifetime: idempotency::LIFETIME_ISO.to_owned(),
            ..ServerCapabilities::default()
        },
        ..ServerConfig::default()
    })
}

/// Returns the identity that the server has assigned to the client.
#[utoipa::path(
    get, path = "/v1/me", tag = "Authentication", operation_id = "getCurrentPrincipal",
    responses((status = 200, description = "The identity of the client", body = Principal)),
)]
pub(super) async fn me(Extension(access): Extension<Access>) -> Json<Principal> {
    Json(access.principal())
}
