use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use tokio::task::spawn_blocking;

use super::boxes::BoxId;
use crate::service::openmetrics::{CONTENT_TYPE, MetricsSnapshot};
use crate::service::{ApiError, ApiState, extract, usage};
use crate::wire::{BoxMetricsResponse, ErrorCode, ErrorResponse, RuntimeMetricsResponse};

/// Returns the metrics of the VMM runtime.
#[utoipa::path(
    get, path = "/v1/metrics", tag = "Metrics", operation_id = "getRuntimeMetrics",
    responses((status = 200, description = "The metrics", body = RuntimeMetricsResponse)),
)]
pub(super) async fn of_runtime(State(api): State<ApiState>) -> Json<RuntimeMetricsResponse> {
    Json(api.runtime.metrics().await.into())
}

/// Returns the resource usage of a box.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/metrics", tag = "Metrics", operation_id = "getBoxMetrics",
    params(BoxId),
    responses(
        (status = 200, description = "The metrics", body = BoxMetricsResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn of_box(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxMetricsResponse>, ApiError> {
    let info = api.runtime.info(&id).await?;
    let cpus = info.cpus.unwrap_or_else(host_processors);
    let usage = match info.pid {
        Some(pid) => spawn_blocking(move || usage::shim_usage(pid, cpus))
            .await
            .map_err(internal_error)?,
        None => BoxMetricsResponse::default(),
    };
    Ok(Json(usage))
}

/// Returns the metrics of the VMM runtime as OpenMetrics text, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "Metrics", operation_id = "getExposition",
    responses((status = 200, description = "OpenMetrics text", body = String,
        content_type = "application/openmetrics-text")),
)]
pub(super) async fn exposition(State(api): State<ApiState>) -> Result<impl IntoResponse, ApiError> {
    let (metrics, boxes) = (api.runtime.metrics().await, api.runtime.list().await);
    let accept_failures = api.accept_failures.load(Relaxed);
    let text = spawn_blocking(move || {
        MetricsSnapshot::take(metrics, &boxes, accept_failures).encode_text()
    });
    let text = text
        .await
        .map_err(internal_error)?
        .map_err(internal_error)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

fn host_processors() -> u32 {
    let count = thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn internal_error(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}
