use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use vmm_runtime::RuntimeMetrics;

use crate::service::ApiState;
use crate::wire::Readiness;

/// Whether the server answers. Needs no token.
#[utoipa::path(
    get, path = "/healthz", tag = "Health", operation_id = "isAlive", security(()),
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")),
)]
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Whether the server can run boxes: its reaper is there, and sweeps.
#[utoipa::path(
    get, path = "/readyz", tag = "Health", operation_id = "isReady",
    responses(
        (status = 200, description = "It can", body = Readiness),
        (status = 503, description = "It cannot, and why", body = Readiness),
    ),
)]
pub(super) async fn ready(State(api): State<ApiState>) -> impl IntoResponse {
    let reason = match api.closing.is_cancelled() {
        true => Some("the server is shutting down".to_owned()),
        false => obstacle(
            &api.runtime.metrics().await,
            api.reaper_stall_timeout,
            SystemTime::now(),
        ),
    };
    let status = match reason {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let ready = reason.is_none();
    (status, Json(Readiness { ready, reason }))
}

fn obstacle(metrics: &RuntimeMetrics, patience: Duration, now: SystemTime) -> Option<String> {
    if !metrics.shim_reaper_alive {
        return Some("the reaper is down".to_owned());
    }
    let last_ms = u64::try_from(metrics.shim_reaper_last_sweep_at_ms?).ok()?;
    let last = UNIX_EPOCH + Duration::from_millis(last_ms);
    // A clock that was set back tells nothing.
    let silent = now.duration_since(last).unwrap_or_default();
    (silent > patience).then(|| {
        let seconds = silent.as_secs();
        format!("the reaper has not swept for {seconds} s")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reaper_that_is_down_or_does_not_sweep_is_an_obstacle() {
        let mut metrics = RuntimeMetrics::default();
        let patience = Duration::from_secs(10);
        let obstacle = |metrics: &RuntimeMetrics, now| obstacle(metrics, patience, now);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(obstacle(&metrics, at(0)).unwrap(), "the reaper is down");
        metrics.shim_reaper_alive = true;
        assert_eq!(obstacle(&metrics, at(0)), None);
        metrics.shim_reaper_last_sweep_at_ms = Some(100_000);
        for fine in [50, 100, 110] {
            assert_eq!(obstacle(&metrics, at(fine)), None);
        }
        assert!(obstacle(&metrics, at(111)).unwrap().contains("11 s"));
    }
}
