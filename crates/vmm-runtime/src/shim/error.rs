use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vmm_protocol::{Ending, ExitRecord, FileError};

use super::describe_ending;

/// An error of a [`ShimProgram`](crate::ShimProgram).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShimProgramError {
    /// The current program cannot be its own shim. A test under the default
    /// harness never can: the docs of `testing::PerTestBoxHome` show what it does instead.
    #[error(
        "this program cannot be its own shim: call vmm_shim::run_if_shim() first in main, \
         or set RuntimeOptions::shim_program"
    )]
    NotAShimProgram,
    /// The program does not exist or cannot be inspected.
    #[error("cannot find shim program {}", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The path is not an executable file.
    #[error("shim program {} is not an executable file", path.display())]
    NotExecutable {
        /// The path.
        path: PathBuf,
    },
}

/// An error of a start of a shim. The shim has ended and has been reaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A file in the box's directory could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The process could not be spawned.
    #[error("cannot spawn shim")]
    Spawn(#[source] io::Error),
    /// The shim did not read its spec.
    #[error("cannot send spec to shim {pid}")]
    SendSpec {
        /// The pid of the shim.
        pid: u32,
        /// The error of the write.
        source: io::Error,
    },
    /// The shim reported why it failed.
    #[error("{}", describe_ending(Some(&record.ending)))]
    Failed {
        /// Its exit record.
        record: ExitRecord,
    },
    /// The shim ended without reporting why.
    #[error("shim {pid} ended before it was ready: {}", describe_ending(ending.as_ref()))]
    Ended {
        /// The pid of the shim.
        pid: u32,
        /// How it ended, if the kernel reported it.
        ending: Option<Ending>,
    },
    /// The payload was not ready in time. The output of the shim is in `shim.stderr`, that of the
    /// payload in `console.log`.
    #[error("the payload was not ready within {}", seconds(after))]
    NotReady {
        /// The time limit.
        after: Duration,
    },
    /// The box was stopped or removed during the start, or the runtime was shut down.
    #[error("the start was cancelled")]
    Interrupted,
}

fn seconds(duration: &Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

impl StartError {
    /// Returns how the shim ended, if known.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Failed { record } => Some(&record.ending),
            Self::Ended { ending, .. } => ending.as_ref(),
            _ => None,
        }
    }
}
