//! The parts that every response has: the request id, and the error model as the body of an error.

use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ulid::Ulid;

use crate::wire::{ErrorCode, ErrorModel, ErrorResponse};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const REQUEST_ID_MAX_BYTES: usize = 128;

/// Assigns an id to the request, adds it to the response, and writes the body of an error.
pub(crate) async fn finish(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = Instant::now();
    let response = next.run(request).await;
    let status = response.status();
    let mut response = match error_model(&response) {
        Some(model) => {
            if status.is_server_error() {
                tracing::error!(request_id = ?id, %method, path, error = model.message, "request failed");
            }
            with_error_body(response, model, &id)
        }
        None => response,
    };
    tracing::debug!(
        request_id = ?id, %method, path, status = status.as_u16(), elapsed = ?start.elapsed(),
        "request finished"
    );
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Removes the Content-Length that axum adds to every response, since a 204 must not have one
/// (RFC 9110, section 8.6).
pub(crate) fn without_length_of_no_content(mut response: Response) -> Response {
    if response.status() == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// Closes the connection after this response.
pub(crate) fn close_connection(response: &mut Response) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// Returns the id that the client has sent, if it is safe to log, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_loggable = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match headers.get(REQUEST_ID).filter(is_loggable) {
        Some(id) => id.clone(),
        // Cannot fail: the text is ASCII.
        None => HeaderValue::from_str(&format!("req_{}", Ulid::generate()))
            .unwrap_or(HeaderValue::from_static("req_unknown")),
    }
}

/// Returns the error model of an error response. For a response that no handler made, the status
/// determines it.
fn error_model(response: &Response) -> Option<ErrorModel> {
    if let Some(model) = response.extensions().get::<ErrorModel>() {
        return Some(model.clone());
    }
    let status = response.status();
    let is_bare_error = (status.is_client_error() || status.is_server_error())
        && response.headers().get(header::CONTENT_TYPE) != Some(&JSON);
    is_bare_error.then(|| match status {
        StatusCode::REQUEST_TIMEOUT => {
            ErrorModel::new(ErrorCode::Timeout, "the request took too long")
        }
        status if status.is_server_error() => ErrorModel::new(
            ErrorCode::Internal,
            "the server failed; its log has the cause",
        ),
        status => ErrorModel::new(ErrorCode::InvalidArgument, status.to_string()),
    })
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn with_error_body(response: Response, mut model: ErrorModel, id: &HeaderValue) -> Response {
    let (mut parts, _) = response.into_parts();
    model.request_id = id.to_str().ok().map(str::to_owned);
    let body = Json(ErrorResponse::from(model)).into_response().into_body();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, JSON);
    Response::from_parts(parts, Body::new(body))
}

/// Responds to the panic of a handler. Only the log has the panic's message.
pub(crate) fn handle_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = message, "a request handler panicked");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::to_bytes;
    use axum::middleware;
    use axum::routing::get;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Records the names of the fields of events.
    #[derive(Clone, Default)]
    struct Fields(Arc<Mutex<Vec<&'static str>>>);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
            self.0.lock().unwrap().push(field.name());
        }
    }

    impl Subscriber for Fields {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_panic_is_logged_in_its_own_field() {
        let fields = Fields::default();
        tracing::subscriber::with_default(fields.clone(), || handle_panic(Box::new("ouch")));
        assert_eq!(*fields.0.lock().unwrap(), ["message", "panic"]);
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_without_the_panic_message() {
        async fn panics() -> &'static str {
            panic!("the secret is out")
        }
        let router = Router::new()
            .route("/", get(panics))
            .layer(CatchPanicLayer::custom(handle_panic))
            .layer(middleware::from_fn(finish));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let ErrorResponse { error } = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (error.code, error.request_id),
            (ErrorCode::Internal, Some(id))
        );
        assert!(!error.message.contains("secret"));
    }
}
