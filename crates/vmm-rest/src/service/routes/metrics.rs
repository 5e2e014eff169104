use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use tokio::task::spawn_blocking;

use super::boxes::BoxId;
use crate::service::exposition::{CONTENT_TYPE, Numbers};
use crate::service::{ApiError, ApiState, extract, usage};
use crate::wire::{BoxMetricsResponse, ErrorCode, ErrorResponse, RuntimeMetricsResponse};

/// What the runtime has done and does.
#[utoipa::path(
    get, path = "/v1/metrics", tag = "Metrics", operation_id = "getRuntimeMetrics",
    responses((status = 200, description = "The numbers", body = RuntimeMetricsResponse)),
)]
pub(super) async fn of_runtime(State(api): State<ApiState>) -> Json<RuntimeMetricsResponse> {
    Json(api.runtime.metrics().await.into())
}

/// What a box uses.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/metrics", tag = "Metrics", operation_id = "getBoxMetrics",
    params(BoxId),
    responses(
        (status = 200, description = "The numbers", body = BoxMetricsResponse),
        (status = 404, description = "There is no such box", body = ErrorResponse),
    ),
)]
pub(super) async fn of_box(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxMetricsResponse>, ApiError> {
    let info = api.runtime.info(&id).await?;
    let cpus = info.cpus.unwrap_or_else(processors);
    let usage = match info.pid {
        Some(pid) => spawn_blocking(move || usage::of_shim(pid, cpus))
            .await
            .map_err(lost)?,
        None => BoxMetricsResponse::default(),
    };
    Ok(Json(usage))
}

/// The numbers of the runtime for Prometheus, as OpenMetrics text.
#[utoipa::path(
    get, path = "/metrics", tag = "Metrics", operation_id = "getExposition",
    responses((status = 200, description = "OpenMetrics text", body = String,
        content_type = "application/openmetrics-text")),
)]
pub(super) async fn exposition(State(api): State<ApiState>) -> Result<impl IntoResponse, ApiError> {
    let (metrics, boxes) = (api.runtime.metrics().await, api.runtime.list().await);
    let accept_failures = api.accept_failures.load(Relaxed);
    let text = spawn_blocking(move || Numbers::take(metrics, &boxes, accept_failures).text());
    let text = text.await.map_err(lost)?.map_err(lost)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

/// Of the host.
fn processors() -> u32 {
    let count = thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn lost(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}
