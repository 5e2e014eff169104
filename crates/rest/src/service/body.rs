use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ApiError, Limits};
use crate::wire::ErrorCode;

/// Takes the whole body in before anything is done: nobody is half served, and a slow or endless
/// body costs a connection only. When the server is to end, what has not arrived is not waited for.
pub(crate) async fn take_in(
    State((limits, closing)): State<(Limits, CancellationToken)>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let read = timeout(limits.body_timeout, to_bytes(body, limits.body_bytes));
    let read = tokio::select! {
        biased;
        read = read => read,
        () = closing.cancelled() => return shutting_down().into_response(),
    };
    match read {
        Ok(Ok(bytes)) => {
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Ok(Err(error)) if is_too_long(&error) => ApiError::invalid(format!(
            "the body is longer than {} bytes",
            limits.body_bytes
        ))
        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        .into_response(),
        Ok(Err(error)) => ApiError::invalid(format!("the body is broken: {error}")).into_response(),
        Err(_) => ApiError::new(
            ErrorCode::Timeout,
            format!("the body did not arrive within {:?}", limits.body_timeout),
        )
        .into_response(),
    }
}

fn shutting_down() -> ApiError {
    ApiError::new(ErrorCode::Stopped, "the server is shutting down")
        .with_status(StatusCode::SERVICE_UNAVAILABLE)
}

fn is_too_long(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<LengthLimitError>())
}
