//! The handlers, by what they are about.

mod boxes;
mod discovery;
mod events;
mod metrics;
mod probes;

use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri, header};
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

pub(crate) use boxes::wait_asked_for;

use super::idempotency::{self, IdempotencyKeys};
use super::{ApiError, ApiState, document};
use crate::wire::ErrorCode;

/// All paths, and the document that describes them; both from the handlers.
pub(crate) fn all() -> (Router<ApiState>, OpenApi) {
    let keys = IdempotencyKeys::default();
    let described = OpenApiRouter::with_openapi(document::head())
        .routes(routes!(discovery::config))
        .routes(routes!(discovery::me))
        .routes(keyed(&keys, routes!(boxes::list, boxes::create)))
        .routes(keyed(
            &keys,
            routes!(boxes::inspect, boxes::exists, boxes::remove),
        ))
        .routes(keyed(&keys, routes!(boxes::start)))
        .routes(keyed(&keys, routes!(boxes::stop)))
        .routes(routes!(metrics::of_runtime))
        .routes(routes!(metrics::of_box))
        .routes(routes!(metrics::exposition))
        .routes(routes!(events::stream))
        .routes(routes!(probes::alive))
        .routes(routes!(probes::ready));
    let (router, mut api) = described.split_for_parts();
    document::complete(&mut api);
    let text = Bytes::from(document::text(&api));
    let document = get(async move || ([(header::CONTENT_TYPE, "application/json")], text.clone()));
    let router = router
        .route("/v1/openapi.json", document)
        .fallback(nowhere)
        .method_not_allowed_fallback(no_such_method);
    (router, api)
}

/// Where idempotency keys are heeded.
fn keyed(
    keys: &IdempotencyKeys,
    routes: UtoipaMethodRouter<ApiState>,
) -> UtoipaMethodRouter<ApiState> {
    let (schemas, paths, methods) = routes;
    let once = middleware::from_fn_with_state(keys.clone(), idempotency::once);
    (schemas, paths, methods.route_layer(once))
}

/// A path that only the public API has is told from one that nobody has.
async fn nowhere(uri: Uri) -> ApiError {
    let segments: Vec<_> = uri.path().split('/').skip(1).collect();
    let lacking = match segments[..] {
        ["v1", "boxes", _, operation, ..] => Some(operation),
        ["v1", "images", ..] => Some("images"),
        _ => None,
    };
    match lacking.filter(|name| LACKING.contains(name)) {
        Some(name) => ApiError::unsupported(name, "such path"),
        None => ApiError::new(
            ErrorCode::NotFound,
            format!(
                "there is no path {:?}; GET /v1/openapi.json lists those that there are",
                uri.path()
            ),
        ),
    }
}

/// The one path of the public API that looks like a box's is told, too.
async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    match (method, uri.path()) {
        (Method::POST, "/v1/boxes/import") => ApiError::unsupported("import", "such path"),
        _ => ApiError::invalid(
            "this path has no such method; the header `Allow` lists those that it has",
        )
        .with_status(StatusCode::METHOD_NOT_ALLOWED),
    }
}

/// What the public API has, and this server has not.
const LACKING: [&str; 8] = [
    "clone",
    "exec",
    "executions",
    "export",
    "files",
    "images",
    "network",
    "snapshots",
];
