use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use vmm_runtime::{Ending, FailureKind, RuntimeError, StartError};

use crate::wire::{ErrorCode, ErrorModel};

/// What a request gets that cannot be answered. Its body is made where the request's id is known,
/// see [`answer`](super::answer).
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    model: ErrorModel,
}

impl ApiError {
    /// With the status that the code has in the public API.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            status: status_of(code),
            model: ErrorModel::new(code, cut(message.into())),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// `wanted` says what this server lacks, and `field` where it was asked for.
    pub(crate) fn unsupported(field: &str, wanted: &str) -> Self {
        Self::new(
            ErrorCode::Unsupported,
            format!("{field}: this server has no {wanted}"),
        )
    }

    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
}

/// It may quote what the client has sent, which can be long.
const MAX_MESSAGE: usize = 1000;

fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push('…');
    }
    message
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::Unsupported => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::SessionReaped => StatusCode::GONE,
        ErrorCode::AlreadyExists | ErrorCode::InvalidState | ErrorCode::Stopped => {
            StatusCode::CONFLICT
        }
        ErrorCode::ImagePullFailed | ErrorCode::ExecutionFailed => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Timeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::NetworkUnavailable
        | ErrorCode::UpstreamUnavailable
        | ErrorCode::EngineUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::StorageError
        | ErrorCode::DatabaseError
        | ErrorCode::MetadataError
        | ErrorCode::ConfigError
        | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response.extensions_mut().insert(self.model);
        response
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        let code = match &error {
            RuntimeError::NotFound { .. } => ErrorCode::NotFound,
            RuntimeError::NameTaken { .. } => ErrorCode::AlreadyExists,
            RuntimeError::InvalidName { .. } | RuntimeError::TooManyLabels { .. } => {
                ErrorCode::InvalidArgument
            }
            RuntimeError::Running { .. } => ErrorCode::InvalidState,
            RuntimeError::Start { source, .. } => code_of_start(source),
            RuntimeError::Stuck { .. } | RuntimeError::CleanupFailed { .. } => {
                ErrorCode::EngineUnavailable
            }
            RuntimeError::Damaged { .. } => ErrorCode::MetadataError,
            RuntimeError::File(_) => ErrorCode::StorageError,
            RuntimeError::Closed => ErrorCode::Stopped,
            _ => ErrorCode::Internal,
        };
        let answer = Self::new(code, error.to_string());
        match error {
            // Another server, or this one started again, may well do it.
            RuntimeError::Closed => answer.with_status(StatusCode::SERVICE_UNAVAILABLE),
            _ => answer,
        }
    }
}

fn code_of_start(error: &StartError) -> ErrorCode {
    match error {
        StartError::File(_) => ErrorCode::StorageError,
        StartError::Spawn(_) | StartError::SendSpec { .. } => ErrorCode::EngineUnavailable,
        StartError::Interrupted => ErrorCode::InvalidState,
        other => match other.ending() {
            Some(Ending::Failed {
                kind: FailureKind::UnknownEngine,
                ..
            }) => ErrorCode::Unsupported,
            _ => ErrorCode::ExecutionFailed,
        },
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        // Well-formed JSON of the wrong shape is a bad request in the public API, too.
        Self::invalid(rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        Self::invalid(rejection.body_text()).with_status(rejection.status())
    }
}
