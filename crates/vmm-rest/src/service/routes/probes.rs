use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use vmm_runtime::RuntimeMetrics;

use crate::service::ApiState;
use crate::wire::Readiness;

/// Checks that the server responds. Needs no token.
#[utoipa::path(
    get, path = "/healthz", tag = "Health", operation_id = "isAlive", security(()),
    responses((status = 200, description = "The server responds", body = String, content_type = "text/plain")),
)]
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Checks that the server can run boxes: its reaper is alive and sweeps.
#[utoipa::path(
    get, path = "/readyz", tag = "Health", operation_id = "isReady",
    responses(
        (status = 200, description = "The server can run boxes", body = Readiness),
        (status = 503, description = "The server cannot run boxes, with the reason", body = Readiness),
    ),
)]
pub(super) async fn ready(State(api): State<ApiState>) -> impl IntoResponse {
    let reason = if api.closing.is_cancelled() {
        Some("the server is shutting down".to_owned())
    } else {
        reaper_problem(
            &api.runtime.metrics().await,
            api.reaper_stall_timeout,
            SystemTime::now(),
        )
    };
    let ready = reason.is_none();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Readiness { ready, reason }))
}

/// Returns why the reaper does not work, if so.
fn reaper_problem(
    metrics: &RuntimeMetrics,
    stall_timeout: Duration,
    now: SystemTime,
) -> Option<String> {
    if !metrics.shim_reaper_alive {
        return Some("the reaper is down".to_owned());
    }
    let last_sweep_ms = u64::try_from(metrics.shim_reaper_last_sweep_at_ms?).ok()?;
    let last_sweep = UNIX_EPOCH + Duration::from_millis(last_sweep_ms);
    // Zero if the clock was set back.
    let stalled = now.duration_since(last_sweep).unwrap_or_default();
    (stalled > stall_timeout).then(|| {
        let seconds = stalled.as_secs();
        format!("the reaper has not swept for {seconds} s")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reaper_that_is_down_or_stalled_is_reported() {
        let mut metrics = RuntimeMetrics::default();
        let stall_timeout = Duration::from_secs(10);
        let problem = |metrics: &RuntimeMetrics, now| reaper_problem(metrics, stall_timeout, now);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(problem(&metrics, at(0)).unwrap(), "the reaper is down");
        metrics.shim_reaper_alive = true;
        assert_eq!(problem(&metrics, at(0)), None);
        metrics.shim_reaper_last_sweep_at_ms = Some(100_000);
        for seconds in [50, 100, 110] {
            assert_eq!(problem(&metrics, at(seconds)), None);
        }
        assert!(problem(&metrics, at(111)).unwrap().contains("11 s"));
    }
}
