use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vmm_protocol::{Ending, ExitRecord, FileError};

use super::describe_ending;

/// An error of a [`ShimProgram`](super::ShimProgram).
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
    /// Shims are executed by way of `/proc`, so that they are all of the file that was opened.
    #[error("cannot execute shim program {}: /proc is not mounted; mount it", path.display())]
    NoProcfs {
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
        /// What the payload printed last. `None` if it printed nothing, or if the shim was started
        /// without a VMM runtime.
        #[source]
        output: Option<LastOutput>,
    },
    /// The shim ended without reporting why.
    #[error("shim {pid} ended before it was ready: {}", describe_ending(ending.as_ref()))]
    Ended {
        /// The pid of the shim.
        pid: u32,
        /// How it ended, if the kernel reported it.
        ending: Option<Ending>,
        /// What the payload printed last, as in [`Failed`](Self::Failed).
        #[source]
        output: Option<LastOutput>,
    },
    /// The payload was not ready in time. What it printed last is in
    /// [`BoxInfo::last_output`](crate::BoxInfo::last_output), the output of the shim in
    /// `shim.stderr`.
    #[error("the payload was not ready within {}", seconds(after))]
    NotReady {
        /// The time limit.
        after: Duration,
    },
    /// The box was stopped or removed during the start, or the runtime was shut down.
    #[error("the start was cancelled")]
    Interrupted,
}

/// The last lines that a payload printed before its start failed, up to 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
// Escaped: the text has several lines, and a payload chooses it.
#[error("its last output is {text:?}")]
#[non_exhaustive]
pub struct LastOutput {
    /// The lines, separated by newlines.
    pub text: String,
}

fn seconds(duration: &Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

impl StartError {
    /// Adds what the payload printed last to the errors that have it.
    pub(crate) fn with_output(mut self, text: Option<&str>) -> Self {
        if let Self::Failed { output, .. } | Self::Ended { output, .. } = &mut self {
            *output = text.map(|text| LastOutput {
                text: text.to_owned(),
            });
        }
        self
    }

    /// Returns how the shim ended, if known.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Failed { record, .. } => Some(&record.ending),
            Self::Ended { ending, .. } => ending.as_ref(),
            _ => None,
        }
    }
}
