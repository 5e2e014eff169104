use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use tokio::time::timeout;

use super::{ApiError, Limits};
use crate::wire::ErrorCode;

/// Takes the whole body in before anything is done: nobody is half served, and a slow or endless
/// body costs a connection only.
pub(crate) async fn take_in(
    State(limits): State<Limits>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let read = to_bytes(body, limits.body_bytes);
    match timeout(limits.body_timeout, read).await {
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

fn is_too_long(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<LengthLimitError>())
}
