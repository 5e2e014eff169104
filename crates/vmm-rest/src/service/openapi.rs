//! The parts of the OpenAPI document that the handlers do not define.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref,
    RefOr, ResponseBuilder, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};

use crate::wire::{ErrorResponse, EventsLost};

const SCHEME: &str = "BearerAuth";

/// Returns the document without its paths.
pub(crate) fn skeleton() -> OpenApi {
    let token = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The token of the server. Clients of its Unix socket need none.",
            ))
            .build(),
    );
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("VMM runtime")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(
                    "Manages boxes: payloads that each run in a shim process. The API is a subset of \
                     the BoxLite Box API, with additional health, metrics and event endpoints. A \
                     request that is not valid HTTP gets 400, 414 or 431 without a body.",
                ))
                .license(Some(
                    LicenseBuilder::new()
                        .name(env!("CARGO_PKG_LICENSE"))
                        .identifier(Some(env!("CARGO_PKG_LICENSE")))
                        .build(),
                ))
                .build(),
        )
        .components(Some(
            ComponentsBuilder::new()
                .security_scheme(SCHEME, token)
                .schema(EventsLost::name(), EventsLost::schema())
                .build(),
        ))
        .security(Some([SecurityRequirement::new(SCHEME, [""; 0])]))
        .build()
}

/// Adds the responses that all operations have in common.
pub(crate) fn add_common_responses(api: &mut OpenApi) {
    for item in api.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.head,
            &mut item.post,
            &mut item.put,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            add_common_responses_to(operation);
        }
    }
}

fn add_common_responses_to(operation: &mut Operation) {
    let is_public = operation.security.is_some();
    let is_mutating = operation.request_body.is_some() || has_idempotency_key(operation);
    for (status, description, applies) in [
        ("400", "The request is malformed", true),
        ("401", "The token is missing or wrong", !is_public),
        ("408", "The request took too long", true),
        ("413", "The body is too long", true),
        (
            "422",
            "The idempotency key was used for another request",
            is_mutating,
        ),
        ("500", "The server failed", true),
        (
            "503",
            "The server is shutting down, or a shim cannot be started or stopped",
            true,
        ),
    ] {
        if applies {
            let content = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(ErrorResponse::name())))
                .build();
            let response = ResponseBuilder::new()
                .description(description)
                .content("application/json", content)
                .build();
            let responses = &mut operation.responses.responses;
            responses
                .entry(status.to_owned())
                .or_insert(response.into());
        }
    }
}

fn has_idempotency_key(operation: &Operation) -> bool {
    let mut parameters = operation.parameters.iter().flatten();
    parameters.any(|parameter| match parameter {
        RefOr::T(parameter) => parameter.name == "Idempotency-Key",
        RefOr::Ref(_) => false,
    })
}

pub(crate) fn to_json(api: &OpenApi) -> String {
    // Cannot fail: every value of the type is valid JSON.
    serde_json::to_string(api).unwrap_or_default()
}
