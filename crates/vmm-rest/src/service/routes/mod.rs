//! The request handlers, grouped by topic.

mod boxes;
mod discovery;
mod events;
mod executions;
mod files;
mod images;
mod logs;
mod metrics;
mod probes;

use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri, header};
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

pub(crate) use boxes::requested_wait;

use super::idempotency::{self, IdempotencyKeys};
use super::{ApiError, ApiState, openapi};
use crate::wire::ErrorCode;

/// Returns the routes, and the OpenAPI document that is generated from them.
pub(crate) fn all(keys: &IdempotencyKeys) -> (Router<ApiState>, OpenApi) {
    let routes = OpenApiRouter::with_openapi(openapi::skeleton())
        .routes(routes!(discovery::config))
        .routes(routes!(discovery::me))
        .routes(with_idempotency_keys(
            keys,
            routes!(boxes::list, boxes::create),
        ))
        .routes(with_idempotency_keys(
            keys,
            routes!(boxes::inspect, boxes::exists, boxes::remove),
        ))
        .routes(with_idempotency_keys(keys, routes!(boxes::start)))
        .routes(with_idempotency_keys(keys, routes!(boxes::stop)))
        .routes(with_idempotency_keys(keys, routes!(boxes::pause)))
        .routes(with_idempotency_keys(keys, routes!(boxes::resume)))
        .routes(with_idempotency_keys(keys, routes!(executions::start)))
        .routes(routes!(executions::list))
        .routes(routes!(executions::inspect, executions::remove))
        .routes(routes!(executions::attach))
        .routes(with_idempotency_keys(keys, routes!(executions::signal)))
        .routes(routes!(executions::resize))
        .routes(routes!(files::put, files::get))
        .routes(routes!(images::list))
        .routes(routes!(images::inspect, images::exists))
        .routes(routes!(metrics::of_runtime))
        .routes(routes!(metrics::of_box))
        .routes(routes!(metrics::exposition))
        .routes(routes!(logs::logs))
        .routes(routes!(events::stream))
        .routes(routes!(probes::alive))
        .routes(routes!(probes::ready));
    let (router, mut api) = routes.split_for_parts();
    openapi::add_common_responses(&mut api);
    let text = Bytes::from(openapi::to_json(&api));
    let document = get(async move || ([(header::CONTENT_TYPE, "application/json")], text.clone()));
    let router = router
        .route("/v1/openapi.json", document)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    (router, api)
}

/// Adds support for idempotency keys to routes.
fn with_idempotency_keys(
    keys: &IdempotencyKeys,
    routes: UtoipaMethodRouter<ApiState>,
) -> UtoipaMethodRouter<ApiState> {
    let (schemas, paths, methods) = routes;
    let execute_once = middleware::from_fn_with_state(keys.clone(), idempotency::execute_once);
    (schemas, paths, methods.route_layer(execute_once))
}

/// Responds to an unknown path: `unsupported` if the public API has it, `not_found` otherwise.
async fn not_found(uri: Uri) -> ApiError {
    let segments: Vec<_> = uri.path().split('/').skip(1).collect();
    let name = match segments[..] {
        ["v1", "boxes", _, operation, ..] => Some(operation),
        _ => None,
    };
    match name.filter(|name| UNSUPPORTED.contains(name)) {
        Some(name) => ApiError::unsupported(name, "this path"),
        None => ApiError::new(
            ErrorCode::NotFound,
            format!(
                "path {:?} not found; GET /v1/openapi.json lists all paths",
                uri.path()
            ),
        ),
    }
}

/// Responds to an unknown method of a known path. `/v1/boxes/import` and `/v1/images/pull`, which only the
/// public API has, match the paths of a box and of an image.
async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    match (method, uri.path()) {
        (Method::POST, "/v1/boxes/import") => ApiError::unsupported("import", "this path"),
        (Method::POST, "/v1/images/pull") => ApiError::unsupported("pull", "this path"),
        _ => ApiError::invalid(
            "the path does not support this method; the header `Allow` lists those that it supports",
        )
        .with_status(StatusCode::METHOD_NOT_ALLOWED),
    }
}

/// Path segments that the public API has and this server does not support.
const UNSUPPORTED: [&str; 4] = ["clone", "export", "network", "snapshots"];
