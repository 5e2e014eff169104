use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;

use super::ClientError;
use crate::wire::ErrorResponse;

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

    pub(super) async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let (at, status) = (self.at.clone(), self.status().as_u16());
        let text = self.text().await?;
        serde_json::from_str(&text).map_err(|error| ClientError::Strange {
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
            .map_err(|source| ClientError::Lost { at, source })
    }
}
