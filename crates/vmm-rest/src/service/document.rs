//! The OpenAPI document, but for what the handlers say themselves.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref,
    RefOr, ResponseBuilder, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};

use crate::wire::{ErrorResponse, EventsLost};

const SCHEME: &str = "BearerAuth";

pub(crate) fn head() -> OpenApi {
    let token = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The server's token; over its Unix socket none is needed.",
            ))
            .build(),
    );
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("VMM runtime")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(
                    "Boxes: payloads that run inside processes of their own. A subset of the \
                     BoxLite Box API, and the server's own health, metrics and events. A request \
                     that is no HTTP gets 400, 414 or 431 without a body.",
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

/// Adds to every path what every path may answer.
pub(crate) fn complete(api: &mut OpenApi) {
    for item in api.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.head,
            &mut item.post,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            add_common_answers(operation);
        }
    }
}

fn add_common_answers(operation: &mut Operation) {
    let open = operation.security.is_some();
    let mutating = operation.request_body.is_some() || has_key(operation);
    for (status, description, applies) in [
        ("400", "The request is malformed", true),
        ("401", "There is no token, or a wrong one", !open),
        ("408", "It took too long", true),
        ("413", "The body is too long", true),
        ("422", "The key was used for another request", mutating),
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
            let answer = ResponseBuilder::new()
                .description(description)
                .content("application/json", content)
                .build();
            let answers = &mut operation.responses.responses;
            answers.entry(status.to_owned()).or_insert(answer.into());
        }
    }
}

fn has_key(operation: &Operation) -> bool {
    let mut parameters = operation.parameters.iter().flatten();
    parameters.any(|parameter| match parameter {
        RefOr::T(parameter) => parameter.name == "Idempotency-Key",
        RefOr::Ref(_) => false,
    })
}

pub(crate) fn text(api: &OpenApi) -> String {
    // Every value of the type is JSON.
    serde_json::to_string(api).unwrap_or_default()
}
