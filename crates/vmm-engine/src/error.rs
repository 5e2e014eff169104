use std::error::Error;
use std::io;
use std::path::PathBuf;

use vmm_network::NetworkError;
use vmm_protocol::{Ending, FailureKind, FileError, with_causes};

/// The error of an engine that cannot run a payload.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The program does not exist. A bare name is searched in the `PATH` of the payload.
    #[error("program not found: {}", program.display())]
    NotFound {
        /// The program as named in the spec.
        program: PathBuf,
    },
    /// The program exists, but the kernel cannot execute it.
    #[error("cannot execute {}", program.display())]
    NotExecutable {
        /// The program as named in the spec.
        program: PathBuf,
        /// The error that the kernel returned.
        source: io::Error,
    },
    /// The spec is incomplete, or requests what the engine does not support.
    #[error("{0}")]
    Spec(String),
    /// Fields of the spec have values that cannot be used.
    #[error("invalid {fields}")]
    InvalidFields {
        /// The fields.
        fields: &'static str,
        /// Why they cannot be used.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A file in the box directory cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of a guest, such as its kernel, cannot be opened.
    #[error("cannot open the {role} {}; correct its path or its permissions", path.display())]
    GuestFile {
        /// What the file is for.
        role: &'static str,
        /// The path in the spec.
        path: PathBuf,
        /// The error that `open(2)` returned.
        source: io::Error,
    },
    /// The base of a persistent overlay is not the file any more to which the overlay belongs.
    #[error(
        "the disk {} has changed since the box wrote to its overlay {}; restore the file, or create a \
         new box",
        path.display(),
        overlay.display()
    )]
    BaseChanged {
        /// The path of the base in the spec.
        path: PathBuf,
        /// The overlay, which is unchanged.
        overlay: PathBuf,
    },
    /// Another process has the persistent overlay of a disk.
    #[error("the overlay {} is in use by another process; wait until it has ended", path.display())]
    DiskInUse {
        /// The overlay.
        path: PathBuf,
    },
    /// A guest that demands KVM cannot be started.
    #[error(
        "KVM cannot be used: {reason}; repair it, or set the option `accelerator` to `auto` or `tcg`"
    )]
    KvmUnusable {
        /// What the check of KVM has found.
        reason: String,
    },
    /// The agent of a guest cannot start the workload.
    #[error("cannot start the workload in the guest: {message}")]
    Workload {
        /// The kind of failure that the agent reported.
        kind: FailureKind,
        /// The cause that the agent reported.
        message: String,
    },
    /// The server of shared directories is not installed.
    #[error(
        "virtiofsd not found, which serves shared directories; install it (in Debian the package \
         virtiofsd, before Debian 13 qemu-system-common)"
    )]
    VirtiofsdNotFound,
    /// A helper process of the payload cannot be started.
    #[error("cannot start {name}")]
    Helper {
        /// The name of the helper.
        name: String,
        /// The error of the start.
        source: io::Error,
    },
    /// The guest cannot be connected to its network namespace.
    #[error("cannot connect the guest to its network")]
    Network(#[from] NetworkError),
    /// The agent cannot configure the network of the guest.
    #[error("cannot configure the network in the guest: {0}")]
    GuestNetwork(String),
    /// The payload ended before it was ready.
    #[error("the payload ended before it was ready")]
    EndedEarly,
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// The operation that failed, as an infinitive.
        action: &'static str,
        /// The error that the system call returned.
        source: io::Error,
    },
    /// An error that is specific to the engine.
    #[error("{0}")]
    Other(String),
}

impl EngineError {
    /// Returns a closure for `map_err` that converts the error of a system call.
    pub fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

impl From<EngineError> for Ending {
    fn from(error: EngineError) -> Self {
        let kind = match error {
            EngineError::NotFound { .. } | EngineError::VirtiofsdNotFound => FailureKind::NotFound,
            EngineError::NotExecutable { .. } => FailureKind::NotExecutable,
            EngineError::Workload { kind, .. } => kind,
            EngineError::File(_) | EngineError::BaseChanged { .. } => FailureKind::Storage,
            EngineError::DiskInUse { .. } | EngineError::Network(NetworkError::InUse { .. }) => {
                FailureKind::InUse
            }
            EngineError::Spec(_)
            | EngineError::InvalidFields { .. }
            | EngineError::GuestFile { .. } => FailureKind::Spec,
            _ => FailureKind::Engine,
        };
        // An ending has no source, so its message includes the cause.
        Self::failed(kind, with_causes(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_an_ending_includes_the_cause_once() {
        let system = EngineError::system("open a pipe")(io::Error::other("disk on fire"));
        let file = FileError::new("write", "/box/exit", io::Error::other("disk on fire"));
        for (error, expected) in [
            (system, "cannot open a pipe: disk on fire"),
            (file.into(), "cannot write /box/exit: disk on fire"),
            (EngineError::Other("no kernel".into()), "no kernel"),
        ] {
            let Ending::Failed { message, .. } = error.into() else {
                unreachable!();
            };
            assert_eq!(message, expected);
        }
    }
}
