use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ApiError, Limits, access, routes};
use crate::wire::ErrorCode;

/// The longest body, in bytes, where none means anything: some clients always send `{}`.
const IDLE_TALK: usize = 1 << 10;

/// Takes the whole body in before anything is done: nobody is half served, and a slow or endless
/// body costs a connection only. When the server is to end, what has not arrived is not waited for.
/// From then on the answer has its time.
pub(crate) async fn take_in(
    State((limits, closing)): State<(Limits, CancellationToken)>,
    request: Request,
    next: Next,
) -> Response {
    let longest = match means_something(&request) {
        true => limits.body_bytes,
        false => limits.body_bytes.min(IDLE_TALK),
    };
    let (parts, body) = request.into_parts();
    let read = tokio::select! {
        biased;
        read = timeout(limits.body_timeout, whole(body, longest)) => {
            read.unwrap_or_else(|_| Err(late(&limits)))
        }
        () = closing.cancelled() => Err(shutting_down()),
    };
    match read {
        Ok(bytes) => {
            let limit = limits
                .request_timeout
                .saturating_add(routes::wait_asked_for(&parts.uri, &bytes));
            let request = Request::from_parts(parts, Body::from(bytes));
            timeout(limit, next.run(request))
                .await
                .unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
        }
        // It does not arrive any more.
        Err(_) if closing.is_cancelled() => shutting_down().into_response(),
        Err(error) => error.into_response(),
    }
}

/// Strangers have nothing to say.
fn means_something(request: &Request) -> bool {
    request.method() == Method::POST && !access::is_open(request.uri().path())
}

async fn whole(body: Body, longest: usize) -> Result<Bytes, ApiError> {
    // If the head says so, nothing of it need be read.
    if body.size_hint().lower() > longest as u64 {
        return Err(too_long(longest));
    }
    to_bytes(body, longest)
        .await
        .map_err(|error| match is_too_long(&error) {
            true => too_long(longest),
            false => ApiError::invalid(format!("the body is broken: {error}")),
        })
}

fn is_too_long(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<LengthLimitError>())
}

fn too_long(longest: usize) -> ApiError {
    ApiError::invalid(format!("the body is longer than {longest} bytes"))
        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

fn late(limits: &Limits) -> ApiError {
    let message = format!("the body did not arrive within {:?}", limits.body_timeout);
    ApiError::new(ErrorCode::Timeout, message)
}

fn shutting_down() -> ApiError {
    ApiError::new(ErrorCode::Stopped, "the server is shutting down")
        .with_status(StatusCode::SERVICE_UNAVAILABLE)
}
