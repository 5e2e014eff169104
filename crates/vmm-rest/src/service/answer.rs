//! What every answer has in common: the id of its request, and the error model.

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

const MAX_ID: usize = 128;

/// Gives the request an id, and puts it into the answer; makes the body of an error.
pub(crate) async fn complete(request: Request, next: Next) -> Response {
    let id = id_of(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = Instant::now();
    let answer = next.run(request).await;
    let status = answer.status();
    let mut answer = match model_of(&answer) {
        Some(model) => {
            if status.is_server_error() {
                tracing::error!(request_id = ?id, %method, path, error = model.message, "failed");
            }
            with_body(answer, model, &id)
        }
        None => answer,
    };
    tracing::debug!(
        request_id = ?id, %method, path, status = status.as_u16(), elapsed = ?begun.elapsed(),
        "answered"
    );
    answer.headers_mut().insert(REQUEST_ID, id);
    answer
}

/// An answer without content says nothing of its length (RFC 9110, section 8.6), which axum adds
/// after all layers.
pub(crate) fn without_idle_length(mut answer: Response) -> Response {
    if answer.status() == StatusCode::NO_CONTENT {
        answer.headers_mut().remove(header::CONTENT_LENGTH);
    }
    answer
}

/// The last one that its connection carries.
pub(crate) fn say_last(answer: &mut Response) {
    let close = HeaderValue::from_static("close");
    answer.headers_mut().insert(header::CONNECTION, close);
}

/// The client's, if it has one that can be put into a log.
fn id_of(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match headers.get(REQUEST_ID).filter(sane) {
        Some(id) => id.clone(),
        // Always ASCII.
        None => HeaderValue::from_str(&format!("req_{}", Ulid::generate()))
            .unwrap_or(HeaderValue::from_static("req_unknown")),
    }
}

/// Of an error; one that does not come from the handlers is told by its status.
fn model_of(answer: &Response) -> Option<ErrorModel> {
    if let Some(model) = answer.extensions().get::<ErrorModel>() {
        return Some(model.clone());
    }
    let status = answer.status();
    let foreign = (status.is_client_error() || status.is_server_error())
        && answer.headers().get(header::CONTENT_TYPE) != Some(&JSON);
    foreign.then(|| match status {
        StatusCode::REQUEST_TIMEOUT => {
            ErrorModel::new(ErrorCode::Timeout, "the request took too long")
        }
        status if status.is_server_error() => {
            ErrorModel::new(ErrorCode::Internal, "the server failed; its log says how")
        }
        status => ErrorModel::new(ErrorCode::InvalidArgument, status.to_string()),
    })
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn with_body(answer: Response, mut model: ErrorModel, id: &HeaderValue) -> Response {
    let (mut parts, _) = answer.into_parts();
    model.request_id = id.to_str().ok().map(str::to_owned);
    let body = Json(ErrorResponse::from(model)).into_response().into_body();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, JSON);
    Response::from_parts(parts, Body::new(body))
}

/// A handler panicked. The message is for the log.
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
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

    /// Counts how often each field of the events is given a value.
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
    fn a_panic_is_logged_beside_the_message_and_not_as_one() {
        let fields = Fields::default();
        tracing::subscriber::with_default(fields.clone(), || panicked(Box::new("ouch")));
        assert_eq!(*fields.0.lock().unwrap(), ["message", "panic"]);
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_that_does_not_say_what_it_was() {
        async fn panics() -> &'static str {
            panic!("the secret is out")
        }
        let router = Router::new()
            .route("/", get(panics))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn(complete));
        let answer = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let id = answer.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let ErrorResponse { error } = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (error.code, error.request_id),
            (ErrorCode::Internal, Some(id))
        );
        assert!(!error.message.contains("secret"));
    }
}
