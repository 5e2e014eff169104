//! What runs payloads: the seam between a shim and a kind of virtual machine.

use std::io;
use std::path::Path;

use vmm_protocol::{Ending, InstanceSpec};

use crate::EngineError;

/// Starts payloads of one kind. A shim has one or more engines, and the spec names one of them.
///
/// Everything here runs inside the shim, one process per box, so a blocking or crashing engine
/// harms no other box. A panic in a call of these methods ends the shim with an
/// [`ExitRecord`](vmm_protocol::ExitRecord) that tells message and place; one in a thread of the engine's
/// own does not end the shim, unless the program is built with `panic = "abort"`. An engine, or a
/// library of its, that calls `exit(3)` ends the shim without a record.
///
/// An engine for a virtual machine that is a process of its own starts and follows that; one that
/// turns the shim itself into the machine prepares it in [`start`](Self::start) and enters it in
/// [`Payload::wait`], which is called on the main thread.
pub trait Engine: Send + Sync {
    /// What a spec calls it.
    fn name(&self) -> &str;

    /// Starts the payload, without waiting until it is ready. `dir` is the box's directory, for
    /// the console's output and the engine's own files.
    ///
    /// Runs on the main thread, which lives as long as the shim: a child that is to die with it
    /// may use `PR_SET_PDEATHSIG`, which is bound to the thread that started it, `prctl(2)`.
    ///
    /// # Errors
    ///
    /// [`EngineError`]. Whatever was started must have been ended then.
    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError>;
}

/// A started payload.
///
/// [`stop`](Self::stop) and [`kill`](Self::kill) are called from other threads while the main
/// thread is in [`wait_until_ready`](Self::wait_until_ready) or [`wait`](Self::wait), any number of
/// times, also at once, and also after the payload has ended.
pub trait Payload: Send + Sync {
    /// Its process, if it has one of its own.
    fn pid(&self) -> Option<u32>;

    /// Blocks until it is ready to be used. Need not return before the payload does what the spec
    /// asks; the runtime sets the deadline.
    ///
    /// # Errors
    ///
    /// [`EngineError`], when it will never be.
    fn wait_until_ready(&self) -> Result<(), EngineError>;

    /// Asks it to stop, as a power button does. Does not wait.
    fn stop(&self);

    /// Ends it and all that it started, by force. Does not wait.
    fn kill(&self);

    /// Blocks until it has ended; nothing that it started runs then. Called once.
    ///
    /// # Errors
    ///
    /// When it can no longer be followed; the shim then kills it and ends.
    fn wait(&self) -> io::Result<PayloadExit>;
}

/// How a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadExit {
    /// With this code, of which the lower 8 bits count, as in `exit(3)`.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Killed by the kernel, because its memory was used up.
    OutOfMemory,
}

impl From<PayloadExit> for Ending {
    fn from(exit: PayloadExit) -> Self {
        match exit {
            // As the kernel does, exit(3).
            PayloadExit::Code(code) => Self::Exited { code: code & 0xff },
            PayloadExit::Signal(signal) => Self::Signaled { signal },
            PayloadExit::OutOfMemory => Self::OutOfMemory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_what_the_kernel_would_make_of_it() {
        for (code, seen) in [(255, 255), (256, 0), (-1, 255)] {
            assert_eq!(
                Ending::from(PayloadExit::Code(code)),
                Ending::Exited { code: seen }
            );
        }
    }
}
