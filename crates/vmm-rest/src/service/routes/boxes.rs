use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{OriginalUri, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::service::{ApiError, ApiState, box_spec, extract, paging, run_blocking};
use crate::wire::{
    BoxResponse, CreateBoxRequest, ErrorResponse, ListBoxesQuery, ListBoxesResponse, StopBoxRequest,
};

/// The path parameter that identifies a box.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "only describes the path parameter for the document"
)]
pub(super) struct BoxIdParam {
    /// The id or the name of a box.
    #[param(
        min_length = 1,
        max_length = 128,
        example = "01HJK4TNRPQSXYZ8WM6NCVT9R5"
    )]
    box_id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(
    dead_code,
    reason = "only describes the header, which a middleware reads, for the document"
)]
pub(super) struct IdempotencyKey {
    /// A request with the key of an earlier request is not executed, and gets the response of the
    /// earlier one. The server rejects a key that was used for a different request.
    #[param(rename = "Idempotency-Key", format = "uuid", nullable = false)]
    key: Option<String>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// Removes the box even if it is running.
    #[param(default = false, required = false)]
    force: bool,
}

/// Lists boxes in order of creation.
#[utoipa::path(
    get, path = "/v1/boxes", tag = "Boxes", operation_id = "listBoxes",
    params(ListBoxesQuery),
    responses(
        (status = 200, description = "A page of boxes", body = ListBoxesResponse),
        (status = 400, description = "The query is malformed", body = ErrorResponse),
    ),
)]
pub(super) async fn list(
    State(api): State<ApiState>,
    extract::Query(query): extract::Query<ListBoxesQuery>,
) -> Result<Json<ListBoxesResponse>, ApiError> {
    paging::list_page(&api.runtime, &query).await.map(Json)
}

/// Creates a box without starting it.
#[utoipa::path(
    post, path = "/v1/boxes", tag = "Boxes", operation_id = "createBox",
    params(IdempotencyKey), request_body = CreateBoxRequest,
    responses(
        (status = 201, description = "The box", body = BoxResponse,
            headers(("Location" = String, description = "The path of the box"))),
        (status = 400, description = "The request is malformed, or asks for an unsupported feature",
            body = ErrorResponse),
        (status = 409, description = "Another box has the name", body = ErrorResponse),
        (status = 415, description = "The Content-Type is not JSON", body = ErrorResponse),
        (status = 422, description = "The image was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn create(
    State(api): State<ApiState>,
    // Has the prefix that the router may be mounted under.
    OriginalUri(uri): OriginalUri,
    extract::Json(request): extract::Json<CreateBoxRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let (images, apply_default_limits) = (Arc::clone(&api.images), api.apply_default_limits);
    let spec = run_blocking(move || box_spec(request, &images, apply_default_limits)).await?;
    let bx = BoxResponse::from(api.runtime.create(spec).await?);
    let location = format!("{}/{}", uri.path(), bx.box_id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(bx),
    ))
}

/// Returns a box.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}", tag = "Boxes", operation_id = "getBox",
    params(BoxIdParam),
    responses(
        (status = 200, description = "The box", body = BoxResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn inspect(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxResponse>, ApiError> {
    Ok(Json(api.runtime.info(&id).await?.into()))
}

/// Checks that a box exists.
#[utoipa::path(
    head, path = "/v1/boxes/{box_id}", tag = "Boxes", operation_id = "boxExists",
    params(BoxIdParam),
    responses(
        (status = 204, description = "The box exists"),
        (status = 404, description = "The box was not found"),
    ),
)]
pub(super) async fn exists(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<StatusCode, ApiError> {
    api.runtime.info(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a box; responds when its processes are gone and its name is free. The server deletes its
/// files afterwards.
#[utoipa::path(
    delete, path = "/v1/boxes/{box_id}", tag = "Boxes", operation_id = "removeBox",
    params(BoxIdParam, RemoveQuery, IdempotencyKey),
    responses(
        (status = 204, description = "The box is removed"),
        (status = 400, description = "The query is malformed", body = ErrorResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
        (status = 409, description = "The box is running", body = ErrorResponse),
    ),
)]
pub(super) async fn remove(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
    extract::Query(query): extract::Query<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    api.runtime.remove(&id, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a box; responds when its payload is ready, or at once if the box is running.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/start", tag = "Boxes", operation_id = "startBox",
    params(BoxIdParam, IdempotencyKey),
    responses(
        (status = 200, description = "The box, running", body = BoxResponse),
        (status = 400, description = "The engine was not found", body = ErrorResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
        (status = 409, description = "The box was stopped or removed during the start", body = ErrorResponse),
        (status = 422, description = "The payload could not be started", body = ErrorResponse),
    ),
)]
pub(super) async fn start(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxResponse>, ApiError> {
    Ok(Json(api.runtime.start(&id).await?.into()))
}

/// Stops a box; responds when it has ended, or at once if the box is not running.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/stop", tag = "Boxes", operation_id = "stopBox",
    params(BoxIdParam, IdempotencyKey), request_body = Option<StopBoxRequest>,
    responses(
        (status = 200, description = "The box, stopped", body = BoxResponse),
        (status = 400, description = "The request is malformed", body = ErrorResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
        (status = 409, description = "Part of the public API; this server never sends it", body = ErrorResponse),
    ),
)]
pub(super) async fn stop(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
    body: Bytes,
) -> Result<Json<BoxResponse>, ApiError> {
    let grace = stop_grace(&body)?;
    Ok(Json(api.runtime.stop_within(&id, grace).await?.into()))
}

/// Pauses a box: freezes its payload until it is resumed; responds at once if it is paused.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/pause", tag = "Boxes", operation_id = "pauseBox",
    params(BoxIdParam, IdempotencyKey),
    responses(
        (status = 200, description = "The box, paused", body = BoxResponse),
        (status = 400, description = "The engine or the host cannot freeze the payload",
            body = ErrorResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
        (status = 409, description = "The box is not running", body = ErrorResponse),
        (status = 422, description = "A process did not freeze in time", body = ErrorResponse),
    ),
)]
pub(super) async fn pause(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxResponse>, ApiError> {
    Ok(Json(api.runtime.pause(&id).await?.into()))
}

/// Resumes a box that is paused; responds at once if it is not.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/resume", tag = "Boxes", operation_id = "resumeBox",
    params(BoxIdParam, IdempotencyKey),
    responses(
        (status = 200, description = "The box, running", body = BoxResponse),
        (status = 400, description = "The payload cannot be paused", body = ErrorResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
        (status = 409, description = "The box is not running", body = ErrorResponse),
    ),
)]
pub(super) async fn resume(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxResponse>, ApiError> {
    Ok(Json(api.runtime.resume(&id).await?.into()))
}

/// Returns the grace period that the body of a stop request sets. Clients may send no body, with any
/// Content-Type.
fn stop_grace(body: &[u8]) -> Result<Duration, ApiError> {
    let request = match body.trim_ascii() {
        [] | b"null" => StopBoxRequest::default(),
        body => extract::json_object(body)?,
    };
    let grace = request.grace();
    grace.ok_or_else(|| ApiError::invalid("timeout_seconds must be a non-negative number"))
}

/// Returns how long a request asks the server to wait: the grace period of a stop.
pub(crate) fn requested_wait(uri: &Uri, body: &[u8]) -> Duration {
    if uri.path().ends_with("/stop") {
        stop_grace(body).unwrap_or_default()
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::DEFAULT_STOP_GRACE;

    #[test]
    fn the_body_of_a_stop_sets_the_grace_period() {
        let grace = |body: &str| stop_grace(body.as_bytes()).ok();
        for body in [
            "",
            "{}",
            r#"{"timeout_seconds": null}"#,
            r#"{"timeout_seconds": 30}"#,
        ] {
            assert_eq!(grace(body), Some(DEFAULT_STOP_GRACE), "{body}");
        }
        let half = Duration::from_millis(500);
        assert_eq!(grace(r#"{"timeout_seconds": 0.5}"#), Some(half));
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(grace(r#"{"timeout_seconds": 1e300}"#), Some(day));
        for body in ["[", "[]", "3", r#"{"timeout_seconds": -1}"#] {
            assert_eq!(grace(body), None, "{body}");
        }
    }
}
