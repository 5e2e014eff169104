use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ErrorCode;

/// The body of every response that tells of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ErrorResponse {
    /// The error.
    pub error: ErrorModel,
}

/// An error: programs look at `code`, people at `message`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ErrorModel {
    /// What went wrong, and the way out where there is one.
    pub message: String,
    /// The code in another spelling.
    #[serde(rename = "type")]
    pub type_name: String,
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// As in the response's header `X-Request-Id` and the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
}

impl ErrorModel {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            type_name: code.type_name().to_owned(),
            code,
            request_id: None,
        }
    }
}

impl From<ErrorModel> for ErrorResponse {
    fn from(error: ErrorModel) -> Self {
        Self { error }
    }
}
