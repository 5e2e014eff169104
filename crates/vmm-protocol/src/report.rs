use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{BootTimes, ExitRecord, UnappliedRule};

/// The report of a shim to the runtime that started it, as one line of JSON on its stdout.
///
/// A shim sends exactly one report that its payload is ready or has failed. A warm shim sends [`Report::Taken`] before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// A warm shim has read which box it gets, and can start the payload from now on.
    Taken,
    /// The payload is ready.
    Ready {
        /// The pid of the payload, if it is a process of its own.
        payload_pid: Option<u32>,
        /// How long the payload took to boot, if it is a guest that reports it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        boot: Option<BootTimes>,
        /// The number of helper processes of the payload.
        #[serde(default)]
        helpers: u32,
        /// The confinement rules that are not applied to the payload.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unapplied_rules: Vec<UnappliedRule>,
    },
    /// The payload did not become ready. The file `exit` contains the same record, unless the disk
    /// is full or another shim runs in the box directory.
    Failed(ExitRecord),
}

/// The signal that makes a shim kill its payload with all descendants, and exit.
///
/// Use it instead of SIGKILL: the shim then leaves no descendant behind, and writes an exit record.
pub const KILL_SIGNAL: Signal = Signal::SIGUSR1;
