use std::io;
use std::path::PathBuf;

use vmm_protocol::FailureKind;
use vmm_protocol::frames::{FrameError, RequestError};

/// Why a request to the shim of a box failed, such as a command to run in the box.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The shim cannot be reached.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket of the shim.
        path: PathBuf,
        /// The error that the system call returned.
        source: io::Error,
    },
    /// The command could not be started.
    #[error("cannot start the command: {message}")]
    Start {
        /// The kind of failure.
        kind: FailureKind,
        /// The cause.
        message: String,
    },
    /// The payload or its shim refused the request.
    #[error(transparent)]
    Refused(RequestError),
    /// The shim has ended, or has closed the connection.
    #[error("the shim closed the connection; the box has ended, or is being stopped")]
    Interrupted,
    /// The shim has not responded for 30 s. The request may be carried out later.
    #[error("the shim does not respond; wait, or stop the box")]
    Timeout,
    /// The shim is of another version of the runtime, which started the box.
    #[error(
        "the shim of the box speaks version {shim} of the control frames, and this runtime version \
         {runtime}; restart the box"
    )]
    Version {
        /// The version of the shim.
        shim: u32,
        /// The version of this runtime.
        runtime: u32,
    },
    /// The shim sent what is not a frame.
    #[error("the shim does not speak the protocol of this runtime; start the box again")]
    Protocol(#[source] FrameError),
    /// The archive to send cannot be read.
    #[error("cannot read the archive")]
    Archive(#[source] io::Error),
    /// The execution has ended.
    #[error("the execution has ended")]
    Ended,
}
