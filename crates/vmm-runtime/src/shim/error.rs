use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vmm_protocol::{Ending, ExitRecord, FileError};

use crate::boxes::describe;

/// Why there is nothing to run shims with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShimProgramError {
    /// This program cannot be its own shim.
    #[error(
        "this program cannot be its own shim: call vmm_shim::run_if_shim() first of all in main, \
         or set RuntimeOptions::shim_program"
    )]
    NotAShimProgram,
    /// The program is not there, or cannot be looked at.
    #[error("cannot find the shim program {}: {source}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is there, and not a program that may be executed.
    #[error("the shim program {} is not an executable file", path.display())]
    NotExecutable {
        /// Which one.
        path: PathBuf,
    },
}

/// Why a shim could not be started. It is gone again, and collected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A file in the box's directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The process could not be made.
    #[error("cannot start the shim: {0}")]
    Spawn(#[source] io::Error),
    /// The shim did not take its spec.
    #[error("cannot tell the shim {pid} its spec: {source}")]
    SendSpec {
        /// The shim.
        pid: u32,
        /// What writing to it said.
        source: io::Error,
    },
    /// The shim says why.
    #[error("{}", describe(Some(&record.ending)))]
    Failed {
        /// What it has left in its exit file.
        record: ExitRecord,
    },
    /// The shim ended, and left nothing that says why.
    #[error("the shim {pid} ended before it was ready: {}", describe(ending.as_ref()))]
    Ended {
        /// The shim.
        pid: u32,
        /// How, where the kernel could tell.
        ending: Option<Ending>,
    },
    /// It took too long. Its output is in `shim.stderr`, the payload's in `console.log`.
    #[error("the payload was not ready within {}", seconds(after))]
    NotReady {
        /// The limit.
        after: Duration,
    },
    /// Somebody stopped or removed the box meanwhile, or shut the runtime down.
    #[error("the start was interrupted")]
    Interrupted,
}

fn seconds(duration: &Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

impl StartError {
    /// How the shim ended, as far as it is known.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Failed { record } => Some(&record.ending),
            Self::Ended { ending, .. } => ending.as_ref(),
            _ => None,
        }
    }
}
