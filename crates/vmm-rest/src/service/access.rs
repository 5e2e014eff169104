use axum::http::{HeaderMap, header};

use super::ApiError;
use crate::BearerToken;
use crate::wire::{ErrorCode, Principal, PrincipalType};

/// How requests to the router of [`Server::router`](crate::Server::router) are authenticated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RouterAccess {
    /// The router requires this token, as a TCP listener does. Only `/v1/config` and `/healthz` need
    /// no token.
    Token(BearerToken),
    /// The application authenticates requests before they reach the router, for example in a layer
    /// around it. The router accepts every request.
    Application,
}

/// How the requests of a listener or router are authenticated.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// By the mode of the Unix socket.
    Owner,
    /// By the token; without one, only public paths are served.
    Bearer(Option<BearerToken>),
    /// By the application that the router is mounted in.
    Application,
}

/// The paths that need no authentication.
const PUBLIC_PATHS: [&str; 2] = ["/v1/config", "/healthz"];

pub(crate) fn is_public(path: &str) -> bool {
    PUBLIC_PATHS.contains(&path)
}

impl From<RouterAccess> for Access {
    fn from(access: RouterAccess) -> Self {
        match access {
            RouterAccess::Token(token) => Self::Bearer(Some(token)),
            RouterAccess::Application => Self::Application,
        }
    }
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
            Self::Application => Principal::new(
                PrincipalType::ServiceAccount,
                "application",
                "client of the application",
            ),
        }
    }

    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let expected = match self {
            Self::Owner | Self::Application => return Ok(()),
            Self::Bearer(Some(token)) => token,
            Self::Bearer(None) => {
                return Err(unauthenticated(
                    "this server has no token and serves only its Unix socket; start it with a \
                     token to use it over TCP",
                ));
            }
        };
        match bearer_token(headers) {
            Some(token) if expected.matches(token) => Ok(()),
            Some(_) => Err(unauthenticated("the token is not the server's")),
            None => Err(unauthenticated(
                "there is no token in the request; send the header `Authorization: Bearer <token>`",
            )),
        }
    }
}

fn unauthenticated(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}
