use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is malformed, or a value out of range.
    InvalidArgument,
    /// The request asks for what this server lacks; the message names the field.
    Unsupported,
    /// No token, or a wrong one.
    Unauthenticated,
    /// The token does not allow it.
    PermissionDenied,
    /// There is no such box, or path.
    NotFound,
    /// The session is over.
    SessionReaped,
    /// The name is taken.
    AlreadyExists,
    /// Not in this state of the box.
    InvalidState,
    /// The server is shutting down.
    Stopped,
    /// There is no such image.
    ImagePullFailed,
    /// The payload could not be started.
    ExecutionFailed,
    /// Too many of something.
    ResourceExhausted,
    /// No network.
    NetworkUnavailable,
    /// Something behind the server does not answer.
    UpstreamUnavailable,
    /// The shim could not be started or stopped.
    EngineUnavailable,
    /// The server's disk refuses.
    StorageError,
    /// The server's database refuses.
    DatabaseError,
    /// What the server has on disk about the box is damaged.
    MetadataError,
    /// The server is set up wrongly.
    ConfigError,
    /// It took too long.
    Timeout,
    /// A bug in the server; also what only a newer server knows.
    #[serde(other)]
    Internal,
}

impl ErrorCode {
    /// The same for people, as in the field `type` of an error.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_newer_server_is_read_as_internal() {
        let code: ErrorCode = serde_json::from_str(r#""moon_phase""#).unwrap();
        assert_eq!(code, ErrorCode::Internal);
    }
}
