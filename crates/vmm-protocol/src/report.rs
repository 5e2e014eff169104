use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::ExitRecord;

/// What a shim reports to the runtime that started it, as one line of JSON on its stdout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The payload runs.
    Ready {
        /// Its pid, where it is a process of its own.
        payload_pid: Option<u32>,
    },
    /// It will not. The same is in the file `exit`, unless the disk is full or the box is another
    /// shim's.
    Failed(ExitRecord),
}

/// Tells a shim to kill its payload, with all that descends from it, and to end. Unlike SIGKILL to
/// the shim it leaves no descendant behind, and an exit record.
pub const KILL_SIGNAL: Signal = Signal::SIGUSR1;
