use std::sync::Weak;

use axum::extract::{Extension, Request};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, Place, answer};
use crate::BearerToken;
use crate::wire::{ErrorCode, Principal, PrincipalType};

/// Who gets in, by the way they come.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Whoever can open the Unix socket: the user that the server runs as.
    Owner,
    /// Whoever has the token; without one nobody.
    Bearer(Option<BearerToken>),
}

/// What a client may know before it has shown who it is.
const OPEN: [&str; 2] = ["/v1/config", "/healthz"];

pub(crate) fn is_open(path: &str) -> bool {
    OPEN.contains(&path)
}

impl Access {
    pub(crate) fn principal(&self) -> Principal {
        match self {
            Self::Owner => Principal::new(PrincipalType::User, "owner", "owner of the socket"),
            Self::Bearer(_) => Principal::new(
                PrincipalType::ServiceAccount,
                "bearer",
                "bearer of the token",
            ),
        }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let wanted = match self {
            Self::Owner => return Ok(()),
            Self::Bearer(Some(token)) => token,
            Self::Bearer(None) => {
                return Err(unauthenticated(
                    "this server has no token, and so serves only its Unix socket; start it with a \
                     token to use it over TCP",
                ));
            }
        };
        match presented(headers) {
            Some(token) if wanted.matches(token) => Ok(()),
            Some(_) => Err(unauthenticated("this is not the server's token")),
            None => Err(unauthenticated(
                "there is no token; send the header `Authorization: Bearer <token>`",
            )),
        }
    }
}

fn unauthenticated(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// Lets nobody else in. A stranger's connection ends with its answer: those who keep theirs would
/// keep others out.
pub(crate) async fn guard(
    Extension(access): Extension<Access>,
    Extension(place): Extension<Weak<Place>>,
    request: Request,
    next: Next,
) -> Response {
    let Err(refusal) = access.check(request.headers()) else {
        if let Some(place) = place.upgrade() {
            place.keep();
        }
        return next.run(request).await;
    };
    let mut answer = match is_open(request.uri().path()) {
        true => next.run(request).await,
        false => refusal.into_response(),
    };
    answer::say_last(&mut answer);
    answer
}
