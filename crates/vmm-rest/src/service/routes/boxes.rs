use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::service::{ApiError, ApiState, extract, page, spec_of};
use crate::wire::{
    BoxResponse, CreateBoxRequest, ErrorResponse, ListBoxesQuery, ListBoxesResponse, StopBoxRequest,
};

/// Which box.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes what axum takes apart")]
pub(super) struct BoxId {
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
#[expect(dead_code, reason = "describes what a middleware reads")]
struct IdempotencyKey {
    /// A request with the key of an earlier one gets that one's answer, and does nothing. The same
    /// key with another request is refused.
    #[param(rename = "Idempotency-Key", format = "uuid", nullable = false)]
    key: Option<String>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// Remove it even if it runs.
    #[param(default = false, required = false)]
    force: bool,
}

/// Boxes, in the order of their creation.
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
    page::find(&api.runtime, &query).await.map(Json)
}

/// Makes a box, without starting it.
#[utoipa::path(
    post, path = "/v1/boxes", tag = "Boxes", operation_id = "createBox",
    params(IdempotencyKey), request_body = CreateBoxRequest,
    responses(
        (status = 201, description = "The box", body = BoxResponse,
            headers(("Location" = String, description = "Where it is"))),
        (status = 400, description = "The request is malformed, or asks for what the server lacks",
            body = ErrorResponse),
        (status = 409, description = "The name is taken", body = ErrorResponse),
        (status = 415, description = "The body is not said to be JSON", body = ErrorResponse),
        (status = 422, description = "There is no such image", body = ErrorResponse),
    ),
)]
pub(super) async fn create(
    State(api): State<ApiState>,
    extract::Json(request): extract::Json<CreateBoxRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let spec = spec_of(request, &api.images, api.apply_default_limits)?;
    let made = BoxResponse::from(api.runtime.create(spec).await?);
    let location = format!("/v1/boxes/{}", made.box_id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(made),
    ))
}

/// A box.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}", tag = "Boxes", operation_id = "getBox",
    params(BoxId),
    responses(
        (status = 200, description = "The box", body = BoxResponse),
        (status = 404, description = "There is no such box", body = ErrorResponse),
    ),
)]
pub(super) async fn inspect(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxResponse>, ApiError> {
    Ok(Json(api.runtime.info(&id).await?.into()))
}

/// Whether there is such a box.
#[utoipa::path(
    head, path = "/v1/boxes/{box_id}", tag = "Boxes", operation_id = "boxExists",
    params(BoxId),
    responses(
        (status = 204, description = "There is"),
        (status = 404, description = "There is not"),
    ),
)]
pub(super) async fn exists(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<StatusCode, ApiError> {
    api.runtime.info(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a box, its process and its files; returns when they are gone.
#[utoipa::path(
    delete, path = "/v1/boxes/{box_id}", tag = "Boxes", operation_id = "removeBox",
    params(BoxId, RemoveQuery, IdempotencyKey),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, description = "The query is malformed", body = ErrorResponse),
        (status = 404, description = "There is no such box", body = ErrorResponse),
        (status = 409, description = "It runs", body = ErrorResponse),
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

/// Starts a box; returns when its payload is ready, at once if it runs already.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/start", tag = "Boxes", operation_id = "startBox",
    params(BoxId, IdempotencyKey),
    responses(
        (status = 200, description = "The box, running", body = BoxResponse),
        (status = 400, description = "There is no such engine", body = ErrorResponse),
        (status = 404, description = "There is no such box", body = ErrorResponse),
        (status = 409, description = "It was stopped or removed meanwhile", body = ErrorResponse),
        (status = 422, description = "The payload could not be started", body = ErrorResponse),
    ),
)]
pub(super) async fn start(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxResponse>, ApiError> {
    Ok(Json(api.runtime.start(&id).await?.into()))
}

/// Stops a box; returns when it has ended, at once if it does not run.
#[utoipa::path(
    post, path = "/v1/boxes/{box_id}/stop", tag = "Boxes", operation_id = "stopBox",
    params(BoxId, IdempotencyKey), request_body = Option<StopBoxRequest>,
    responses(
        (status = 200, description = "The box, stopped", body = BoxResponse),
        (status = 400, description = "The request is malformed", body = ErrorResponse),
        (status = 404, description = "There is no such box", body = ErrorResponse),
        (status = 409, description = "Never from this server; the public API has it", body = ErrorResponse),
    ),
)]
pub(super) async fn stop(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
    body: Bytes,
) -> Result<Json<BoxResponse>, ApiError> {
    let limit = stop_limit(&body)?;
    Ok(Json(api.runtime.stop_within(&id, limit).await?.into()))
}

/// Clients may send no body, whatever type they claim that it has.
fn stop_limit(body: &[u8]) -> Result<Duration, ApiError> {
    let request = match body.trim_ascii() {
        [] | b"null" => StopBoxRequest::default(),
        body => extract::object(body)?,
    };
    let grace = request.grace();
    grace.ok_or_else(|| ApiError::invalid("timeout_seconds is no span of time"))
}

/// How long a request asks to be kept waiting: a stop, for as long as the box may take.
pub(crate) fn wait_asked_for(uri: &Uri, body: &[u8]) -> Duration {
    match uri.path().ends_with("/stop") {
        true => stop_limit(body).unwrap_or_default(),
        false => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::STOP_GRACE;

    #[test]
    fn a_stop_waits_as_long_as_it_is_told_to() {
        let limit = |body: &str| stop_limit(body.as_bytes()).ok();
        for body in [
            "",
            "{}",
            r#"{"timeout_seconds": null}"#,
            r#"{"timeout_seconds": 30}"#,
        ] {
            assert_eq!(limit(body), Some(STOP_GRACE), "{body}");
        }
        let half = Duration::from_millis(500);
        assert_eq!(limit(r#"{"timeout_seconds": 0.5}"#), Some(half));
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(limit(r#"{"timeout_seconds": 1e300}"#), Some(day));
        for body in ["[", "[]", "3", r#"{"timeout_seconds": -1}"#] {
            assert_eq!(limit(body), None, "{body}");
        }
    }
}
