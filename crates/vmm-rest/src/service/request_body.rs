use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use http_body_util::LengthLimitError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ApiError, Limits, access, routes};
use crate::wire::ErrorCode;

/// The longest body, in bytes, of a request whose body is ignored: some clients always send `{}`.
const IGNORED_BODY_MAX: usize = 1 << 10;

/// Reads the whole body, then runs the request under its timeout.
///
/// Since no handler runs before the body is complete, a slow or endless body costs only a
/// connection. A body that is incomplete when the server shuts down is abandoned.
///
/// An archive is not read here: its handler reads it as fast as a guest does. It has no limit but
/// that each part of it arrives in time.
pub(crate) async fn buffer(
    State((limits, closing)): State<(Limits, CancellationToken)>,
    request: Request,
    next: Next,
) -> Response {
    if is_archive(&request) {
        let request = request.map(|body| timed(body, limits.body_timeout, closing.clone()));
        let response = next.run(request).await;
        // The shutdown has cut the body off.
        return if closing.is_cancelled() && response.status().is_client_error() {
            shutting_down().into_response()
        } else {
            response
        };
    }
    let max_bytes = if is_body_used(&request) {
        limits.body_bytes
    } else {
        limits.body_bytes.min(IGNORED_BODY_MAX)
    };
    let (parts, body) = request.into_parts();
    let read = tokio::select! {
        biased;
        read = timeout(limits.body_timeout, read_body(body, max_bytes)) => {
            read.unwrap_or_else(|_| Err(body_timed_out(&limits)))
        }
        () = closing.cancelled() => Err(shutting_down()),
    };
    match read {
        Ok(bytes) => {
            let limit = limits
                .request_timeout
                .saturating_add(routes::requested_wait(&parts.uri, &bytes));
            let request = Request::from_parts(parts, Body::from(bytes));
            timeout(limit, next.run(request))
                .await
                .unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
        }
        // The shutdown has cut the body off.
        Err(_) if closing.is_cancelled() => shutting_down().into_response(),
        Err(error) => error.into_response(),
    }
}

/// Returns whether a handler reads the body. Unauthenticated bodies are ignored.
fn is_body_used(request: &Request) -> bool {
    request.method() == Method::POST && !access::is_public(request.uri().path())
}

/// Returns whether the body is an archive for a box.
fn is_archive(request: &Request) -> bool {
    request.method() == Method::PUT && request.uri().path().ends_with("/files")
}

/// Returns a body that fails if its next part does not arrive in time, or if the server shuts down.
fn timed(body: Body, limit: Duration, closing: CancellationToken) -> Body {
    let parts = stream::try_unfold(body.into_data_stream(), move |mut parts| {
        let closing = closing.clone();
        async move {
            let part = tokio::select! {
                biased;
                part = timeout(limit, parts.next()) => part,
                () = closing.cancelled() => {
                    return Err(io::Error::other("the server is shutting down"));
                }
            };
            match part {
                Ok(Some(part)) => Ok(Some((part.map_err(io::Error::other)?, parts))),
                Ok(None) => Ok(None),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }
    });
    Body::from_stream(parts)
}

async fn read_body(body: Body, max_bytes: usize) -> Result<Bytes, ApiError> {
    // Checked first, so that a body whose Content-Length is too large is not read at all.
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(body_too_long(max_bytes));
    }
    to_bytes(body, max_bytes).await.map_err(|error| {
        if is_length_limit(&error) {
            body_too_long(max_bytes)
        } else {
            ApiError::invalid(format!("cannot read the body: {error}"))
        }
    })
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<LengthLimitError>())
}

fn body_too_long(max_bytes: usize) -> ApiError {
    ApiError::invalid(format!("the body is longer than {max_bytes} bytes"))
        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

fn body_timed_out(limits: &Limits) -> ApiError {
    let message = format!("the body did not arrive within {:?}", limits.body_timeout);
    ApiError::new(ErrorCode::Timeout, message)
}

fn shutting_down() -> ApiError {
    ApiError::new(ErrorCode::Stopped, "the server is shutting down")
        .with_status(StatusCode::SERVICE_UNAVAILABLE)
}
