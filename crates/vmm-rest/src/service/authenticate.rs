use std::sync::Weak;

use axum::extract::{Extension, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{Access, is_public};
use super::{ConnectionSlot, response};

/// Rejects unauthenticated requests, except for public paths. The server closes the connection after
/// its response to an unauthenticated client: an idle one would occupy a slot.
pub(crate) async fn authenticate(
    Extension(access): Extension<Access>,
    slot: Option<Extension<Weak<ConnectionSlot>>>,
    request: Request,
    next: Next,
) -> Response {
    let Err(error) = access.check(request.headers()) else {
        if let Some(slot) = slot.as_ref().and_then(|slot| slot.upgrade()) {
            slot.mark_authenticated();
        }
        return next.run(request).await;
    };
    let mut response = if is_public(request.uri().path()) {
        next.run(request).await
    } else {
        error.into_response()
    };
    // A mounted router does not manage connections.
    if slot.is_some() {
        response::close_connection(&mut response);
    }
    response
}
