use serde::{Deserialize, Serialize};

use crate::bounds;

/// A request that was not carried out, as the payload reports it to the host.
///
/// The message includes the causes: an error that was received from another process has no source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// The kind of failure, for programs.
    pub kind: RequestErrorKind,
    /// The cause, for people.
    #[serde(deserialize_with = "bounds::deserialize_text")]
    pub message: String,
}

impl RequestError {
    /// Creates an error.
    pub fn new(kind: RequestErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// Creates the error of a request that the payload cannot carry out.
    pub fn unsupported(request: &str) -> Self {
        let message = format!("the payload does not support the request {request}");
        Self::new(RequestErrorKind::Unsupported, message)
    }
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RequestErrorKind {
    /// The payload cannot do this.
    Unsupported,
    /// The execution or file does not exist.
    NotFound,
    /// The path is a file, and the request needs a directory.
    NotADirectory,
    /// The file exists, and the request does not replace it.
    Exists,
    /// Another client is attached to the execution.
    InUse,
    /// The payload is not started yet, or its guest still boots. A later request can succeed.
    NotReady,
    /// The id of the execution is already used, or the request or archive is not valid.
    Invalid,
    /// Any other failure.
    #[serde(other)]
    Failed,
}

impl RequestErrorKind {
    /// The kinds by exit code, from 1.
    const BY_EXIT_CODE: [Self; 8] = [
        Self::Failed,
        Self::NotFound,
        Self::NotADirectory,
        Self::Exists,
        Self::Invalid,
        Self::InUse,
        Self::NotReady,
        Self::Unsupported,
    ];

    /// Returns the code with which a file transfer ends that has this error.
    pub fn exit_code(self) -> u8 {
        let codes = (1..).zip(Self::BY_EXIT_CODE);
        let mut codes = codes.filter(|(_, kind)| *kind == self);
        codes.next().map_or(1, |(code, _)| code)
    }

    /// Returns the error of a file transfer that has ended with this code, which is not 0.
    pub fn from_exit_code(code: i32) -> Self {
        let index = usize::try_from(code)
            .ok()
            .and_then(|code| code.checked_sub(1));
        let kind = index.and_then(|index| Self::BY_EXIT_CODE.get(index));
        kind.copied().unwrap_or(Self::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_names_the_error() {
        for kind in RequestErrorKind::BY_EXIT_CODE {
            assert_eq!(
                RequestErrorKind::from_exit_code(kind.exit_code().into()),
                kind
            );
        }
        for code in [0, -1, 101, i32::MAX] {
            let kind = RequestErrorKind::from_exit_code(code);
            assert_eq!(kind, RequestErrorKind::Failed);
        }
    }
}
