use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;

use super::ClientError;
use crate::wire::{ErrorCode, ErrorModel, ErrorResponse};

/// The response of a server.
#[derive(Debug)]
pub(super) struct ServerResponse {
    /// The socket or address of the server, for errors.
    pub(super) at: String,
    pub(super) response: Response,
}

impl ServerResponse {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Returns the response, or the error that it reports.
    pub(super) async fn check(self) -> Result<Self, ClientError> {
        if self.status().is_success() {
            Ok(self)
        } else {
            Err(self.into_error().await)
        }
    }

    /// Converts an error response, with the error model in its body.
    pub(super) async fn into_error(self) -> ClientError {
        let status = self.status().as_u16();
        match self.json::<ErrorResponse>().await {
            Ok(ErrorResponse { error }) => ClientError::Refused { status, error },
            Err(error) => error,
        }
    }

    /// Converts an error response to HEAD, which has no body: its status determines the code.
    pub(super) fn into_error_by_status(self) -> ClientError {
        let status = self.status();
        let code = match status {
            StatusCode::BAD_REQUEST => ErrorCode::InvalidArgument,
            StatusCode::UNAUTHORIZED => ErrorCode::Unauthenticated,
            StatusCode::FORBIDDEN => ErrorCode::PermissionDenied,
            StatusCode::REQUEST_TIMEOUT => ErrorCode::Timeout,
            StatusCode::TOO_MANY_REQUESTS => ErrorCode::ResourceExhausted,
            StatusCode::INTERNAL_SERVER_ERROR => ErrorCode::Internal,
            StatusCode::SERVICE_UNAVAILABLE => ErrorCode::Stopped,
            _ => {
                return ClientError::UnexpectedResponse {
                    at: self.at,
                    status: status.as_u16(),
                    reason: status.to_string(),
                };
            }
        };
        ClientError::Refused {
            status: status.as_u16(),
            error: ErrorModel::new(
                code,
                format!("the server at {} responded with {status}", self.at),
            ),
        }
    }

    pub(super) async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let (at, status) = (self.at.clone(), self.status().as_u16());
        let text = self.text().await?;
        serde_json::from_str(&text).map_err(|error| ClientError::UnexpectedResponse {
            at,
            status,
            reason: error.to_string(),
        })
    }

    /// Returns the body as it arrives.
    pub(super) fn chunks(self) -> BoxStream<'static, Result<Vec<u8>, ClientError>> {
        let Self { at, response } = self;
        let chunks = response.bytes_stream();
        chunks
            .map_ok(Vec::from)
            .map_err(move |source| ClientError::Interrupted {
                at: at.clone(),
                source,
            })
            .boxed()
    }

    pub(super) async fn text(self) -> Result<String, ClientError> {
        let Self { at, response } = self;
        response
            .text()
            .await
            .map_err(|source| ClientError::Interrupted { at, source })
    }
}
