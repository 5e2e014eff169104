use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use tokio::time::timeout;

use super::boxes::BoxIdParam;
use crate::service::openmetrics::{CONTENT_TYPE, MetricsSnapshot};
use crate::service::{ApiError, ApiState, extract};
use crate::wire::{BoxMetricsResponse, ErrorCode, ErrorResponse, RuntimeMetricsResponse};

/// How long a guest may take to report what it uses.
const GUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the metrics of the VMM runtime.
#[utoipa::path(
    get, path = "/v1/metrics", tag = "Metrics", operation_id = "getRuntimeMetrics",
    responses((status = 200, description = "The metrics", body = RuntimeMetricsResponse)),
)]
pub(super) async fn of_runtime(State(api): State<ApiState>) -> Json<RuntimeMetricsResponse> {
    Json(api.runtime.metrics().await.into())
}

/// Returns the resource usage of a box, and what the server has counted of the commands in it.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/metrics", tag = "Metrics", operation_id = "getBoxMetrics",
    params(BoxIdParam),
    responses(
        (status = 200, description = "The metrics", body = BoxMetricsResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn of_box(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<BoxMetricsResponse>, ApiError> {
    let executions = api.runtime.execution_metrics(&id)?;
    let stats = match timeout(GUEST_TIMEOUT, api.runtime.stats(&id)).await {
        Ok(Ok(stats)) => stats,
        // The box does not run, or its guest does not respond.
        _ => api.runtime.usage(&id).await?.into(),
    };
    let info = api.runtime.info(&id).await?;
    Ok(Json(BoxMetricsResponse::new(stats, executions, &info)))
}

/// Returns the metrics of the VMM runtime as OpenMetrics text, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "Metrics", operation_id = "getExposition",
    responses((status = 200, description = "OpenMetrics text", body = String,
        content_type = "application/openmetrics-text")),
)]
pub(super) async fn exposition(State(api): State<ApiState>) -> Result<impl IntoResponse, ApiError> {
    let accept_failures = api.accept_failures.load(Relaxed);
    let metrics = MetricsSnapshot::take(&api.runtime, accept_failures).await;
    let text = metrics
        .encode_text()
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}
