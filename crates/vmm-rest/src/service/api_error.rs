use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use vmm_runtime::{
    Ending, ExecError, FailureKind, ImageError, RequestErrorKind, RuntimeError, StartError,
    with_causes,
};

use crate::wire::{ErrorCode, ErrorModel};

/// The error of a request. [`response::finish`](super::response::finish), which knows the request id,
/// writes the body.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    model: ErrorModel,
}

impl ApiError {
    /// Creates an error with the HTTP status that the public API assigns to the code.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            status: http_status(code),
            model: ErrorModel::new(code, truncated(message.into())),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// Creates the error of a request for a feature that this server does not support; `field` is the
    /// place in the request that asks for it.
    pub(crate) fn unsupported(field: &str, feature: &str) -> Self {
        Self::new(
            ErrorCode::Unsupported,
            format!("{field}: this server does not support {feature}"),
        )
    }

    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
}

/// The longest message: it can quote what the client has sent.
const MESSAGE_MAX_BYTES: usize = 1000;

fn truncated(mut message: String) -> String {
    if message.len() > MESSAGE_MAX_BYTES {
        message.truncate(message.floor_char_boundary(MESSAGE_MAX_BYTES));
        message.push('…');
    }
    message
}

fn http_status(code: ErrorCode) -> StatusCode {
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
            RuntimeError::NotFound { .. } | RuntimeError::Ambiguous { .. } => ErrorCode::NotFound,
            RuntimeError::NameTaken { .. } => ErrorCode::AlreadyExists,
            RuntimeError::InvalidName { .. }
            | RuntimeError::InvalidPayload { .. }
            | RuntimeError::RestartOfRemoved { .. }
            | RuntimeError::TooManyLabels { .. } => ErrorCode::InvalidArgument,
            RuntimeError::Running { .. }
            | RuntimeError::NotRunning { .. }
            | RuntimeError::Starting { .. }
            | RuntimeError::Paused { .. } => ErrorCode::InvalidState,
            RuntimeError::Exec { source, .. } => exec_error_code(source),
            RuntimeError::Start { source, .. } => start_error_code(source),
            RuntimeError::Stuck { .. } | RuntimeError::CleanupFailed { .. } => {
                ErrorCode::EngineUnavailable
            }
            RuntimeError::DiskFull { .. }
            | RuntimeError::OutOfInodes { .. }
            | RuntimeError::NoFreeUid { .. } => ErrorCode::ResourceExhausted,
            RuntimeError::Damaged { .. } => ErrorCode::MetadataError,
            RuntimeError::File(_) | RuntimeError::Console { .. } => ErrorCode::StorageError,
            RuntimeError::Closed => ErrorCode::Stopped,
            _ => ErrorCode::Internal,
        };
        let mut api_error = Self::new(code, with_causes(&error));
        match error {
            RuntimeError::Exec {
                source: ExecError::Start { kind, .. },
                ..
            } => {
                api_error.model.exit_code = u8::try_from(kind.shell_code()).ok();
                api_error
            }
            // A retry can succeed, with this server after a restart or with another one.
            RuntimeError::Closed => api_error.with_status(StatusCode::SERVICE_UNAVAILABLE),
            _ => api_error,
        }
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::NotFound { .. } => ErrorCode::NotFound,
            ImageError::InvalidName { .. } => ErrorCode::InvalidArgument,
            ImageError::File(_) => ErrorCode::StorageError,
            ImageError::Malformed { .. } => ErrorCode::MetadataError,
            _ => ErrorCode::Internal,
        };
        Self::new(code, with_causes(&error))
    }
}

fn start_error_code(error: &StartError) -> ErrorCode {
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

fn exec_error_code(error: &ExecError) -> ErrorCode {
    match error {
        ExecError::Start { .. } => ErrorCode::ExecutionFailed,
        // The client has sent it.
        ExecError::Archive(_) => ErrorCode::InvalidArgument,
        // The box ends, or the execution has ended.
        ExecError::Connect { .. } | ExecError::Interrupted | ExecError::Ended => {
            ErrorCode::InvalidState
        }
        ExecError::Refused(error) => match error.kind {
            RequestErrorKind::Unsupported => ErrorCode::Unsupported,
            RequestErrorKind::NotFound => ErrorCode::NotFound,
            RequestErrorKind::InUse | RequestErrorKind::NotReady => ErrorCode::InvalidState,
            RequestErrorKind::Exists => ErrorCode::AlreadyExists,
            RequestErrorKind::Invalid | RequestErrorKind::NotADirectory => {
                ErrorCode::InvalidArgument
            }
            _ => ErrorCode::ExecutionFailed,
        },
        _ => ErrorCode::EngineUnavailable,
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        // Always 400, as in the public API; axum distinguishes 400, 415 and 422.
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
