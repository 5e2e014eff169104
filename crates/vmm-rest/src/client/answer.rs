use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;

use super::ClientError;
use crate::wire::{ErrorCode, ErrorModel, ErrorResponse};

/// What a server has answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) at: String,
    pub(super) response: Response,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Itself, unless it tells of an error.
    pub(super) async fn check(self) -> Result<Self, ClientError> {
        match self.status().is_success() {
            true => Ok(self),
            false => Err(self.refusal().await),
        }
    }

    pub(super) async fn refusal(self) -> ClientError {
        let status = self.status().as_u16();
        match self.json::<ErrorResponse>().await {
            Ok(ErrorResponse { error }) => ClientError::Refused { status, error },
            Err(error) => error,
        }
    }

    /// The same of an answer to HEAD, which has no body: told by the status.
    pub(super) fn refusal_without_body(self) -> ClientError {
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
            error: ErrorModel::new(code, format!("{} answers {status}", self.at)),
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

    pub(super) async fn text(self) -> Result<String, ClientError> {
        let Self { at, response } = self;
        response
            .text()
            .await
            .map_err(|source| ClientError::Interrupted { at, source })
    }
}
