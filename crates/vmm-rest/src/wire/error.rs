use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The machine-readable kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is malformed, or a value is out of range.
    InvalidArgument,
    /// The server does not support what the request asks for; the message names the field.
    Unsupported,
    /// The token is missing or wrong.
    Unauthenticated,
    /// The token does not permit the request.
    PermissionDenied,
    /// The box or path was not found.
    NotFound,
    /// The session has ended.
    SessionReaped,
    /// Another box has the name.
    AlreadyExists,
    /// The state of the box does not allow the request.
    InvalidState,
    /// The server is shutting down.
    Stopped,
    /// The image was not found.
    ImagePullFailed,
    /// The payload could not be started.
    ExecutionFailed,
    /// A limit of the server is exhausted.
    ResourceExhausted,
    /// The network is unavailable.
    NetworkUnavailable,
    /// A service that the server depends on does not respond.
    UpstreamUnavailable,
    /// The shim could not be started or stopped.
    EngineUnavailable,
    /// The server cannot read or write its files.
    StorageError,
    /// The server cannot read or write its database.
    DatabaseError,
    /// The files of the box are damaged.
    MetadataError,
    /// The configuration of the server is invalid.
    ConfigError,
    /// The request took too long.
    Timeout,
    /// An internal error, or a code that only a newer server knows.
    #[serde(other)]
    Internal,
}

impl ErrorCode {
    /// Returns the name of the error's type, as in [`ErrorModel::type_name`].
    pub fn type_name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgumentError",
            Self::Unsupported => "UnsupportedError",
            Self::Unauthenticated | Self::PermissionDenied => "AuthError",
            Self::NotFound => "NotFoundError",
            Self::SessionReaped => "SessionReaped",
            Self::AlreadyExists => "AlreadyExistsError",
            Self::InvalidState => "InvalidStateError",
            Self::Stopped => "StoppedError",
            Self::ImagePullFailed => "ImageError",
            Self::ExecutionFailed => "ExecutionError",
            Self::ResourceExhausted => "ResourceExhaustedError",
            Self::NetworkUnavailable => "NetworkError",
            Self::UpstreamUnavailable => "UpstreamUnavailableError",
            Self::EngineUnavailable => "EngineError",
            Self::StorageError => "StorageError",
            Self::DatabaseError => "DatabaseError",
            Self::MetadataError => "MetadataError",
            Self::ConfigError => "ConfigError",
            Self::Timeout => "TimeoutError",
            Self::Internal => "InternalError",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.type_name())
    }
}

/// The body of every error response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ErrorResponse {
    /// The error.
    pub error: ErrorModel,
}

/// An error: `code` is for programs, `message` is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ErrorModel {
    /// What went wrong and, where possible, how to fix it.
    pub message: String,
    /// The code in the spelling of exception types.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The machine-readable kind of the error.
    pub code: ErrorCode,
    /// The exit code of docker for a command that could not be started: 127 if it was not found, 126 if
    /// it cannot be executed, and 125 for any other cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub exit_code: Option<u8>,
    /// The id of the request, as in the response header `X-Request-Id` and the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
}

impl ErrorModel {
    #[cfg(any(feature = "client", feature = "server"))]
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            type_name: code.type_name().to_owned(),
            code,
            exit_code: None,
            request_id: None,
        }
    }
}

impl From<ErrorModel> for ErrorResponse {
    fn from(error: ErrorModel) -> Self {
        Self { error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_read_as_internal() {
        let code: ErrorCode = serde_json::from_str(r#""moon_phase""#).unwrap();
        assert_eq!(code, ErrorCode::Internal);
    }
}
