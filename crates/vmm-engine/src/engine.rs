use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use vmm_protocol::frames::RequestError;
use vmm_protocol::{
    BootTimes, Ending, FailureKind, GuestEvent, HostPolicy, InstanceSpec, PayloadSpec,
    UnappliedRule,
};

use crate::{Call, EngineError, Helper, Pause};

/// The code that starts one kind of payload.
///
/// An engine runs inside a shim, one process per box, so an engine that blocks or crashes does not
/// affect other boxes. If a method of the engine or its payload panics, the shim ends with an
/// [`ExitRecord`](vmm_protocol::ExitRecord) that contains the message and the place. A panic in a
/// thread that the engine has started does not end the shim, unless the program is built with
/// `panic = "abort"`. An engine that calls `exit(3)`, directly or in a library, ends the shim
/// without a record.
///
/// An engine for a virtual machine that is a process of its own, such as QEMU, starts that process
/// and waits for it. An engine that turns the shim itself into the virtual machine prepares the
/// machine in [`start`](Self::start) and runs it in [`Payload::wait`], which the shim calls on its
/// main thread.
pub trait Engine: Send + Sync {
    /// Returns the name by which a spec selects the engine.
    fn name(&self) -> &str;

    /// Checks what can be checked without the files of the host: whether the engine knows the
    /// options of the payload, can honour its fields, and the operator permits them. The daemon calls this when a box is
    /// created, the shim before [`start`](Self::start). Accepts every payload by default.
    ///
    /// # Errors
    ///
    /// [`EngineError::Spec`] or [`EngineError::InvalidFields`], which name the field and the remedy.
    fn validate(&self, payload: &PayloadSpec, policy: &HostPolicy) -> Result<(), EngineError> {
        let _ = (payload, policy);
        Ok(())
    }

    /// Starts the payload and returns without waiting until it is ready. The engine can write its
    /// own files and the console output to the box directory `dir`.
    ///
    /// The shim calls this on its main thread, which lives as long as the shim. The engine can
    /// therefore use `PR_SET_PDEATHSIG`, which is tied to the thread that starts the child
    /// (`prctl(2)`), for a child that must die with the shim.
    ///
    /// # Errors
    ///
    /// [`EngineError`]. The engine must have ended everything that it had started.
    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError>;

    /// Removes what a run has left beside its processes: sockets and temporary files in the box
    /// directory `dir`, mounts, network devices. By default there is nothing to remove.
    ///
    /// The daemon calls this after a shim that may have ended without removing them, for example
    /// because it was killed. All processes of the run have ended, and possibly nothing is left. The
    /// payload may have changed `dir`: follow no symbolic link in it.
    ///
    /// # Errors
    ///
    /// [`EngineError`]. The daemon calls this again, and the box cannot start until it succeeds.
    fn cleanup(&self, payload: &PayloadSpec, dir: &Path) -> Result<(), EngineError> {
        let _ = (payload, dir);
        Ok(())
    }
}

/// A payload that an [`Engine`] has started.
///
/// What not every payload can do is an object that the payload has or does not have, such as
/// [`Pause`].
///
/// The shim calls [`stop`](Self::stop) and [`kill`](Self::kill) from other threads while its main
/// thread is in [`wait_until_ready`](Self::wait_until_ready) or [`wait`](Self::wait). It can call
/// them any number of times, concurrently, and after the payload has ended.
pub trait Payload: Send + Sync {
    /// Returns the pid of the payload, if it is a process of its own.
    fn pid(&self) -> Option<u32>;

    /// Returns the processes that the payload needs beside it; none by default. The shim calls this
    /// once, on its main thread, before [`wait_until_ready`](Self::wait_until_ready), and starts them.
    ///
    /// If a helper ends while the payload runs, the shim kills the payload, and the box ends with
    /// [`Ending::Helper`]. A helper that exits with 0 may have noticed the end of the payload before the
    /// shim: the payload has a few seconds to end, too. A helper that a signal has ended is the cause also if the
    /// payload has ended meanwhile. When the payload has ended, the shim kills the helpers that still run.
    fn helpers(&self) -> Vec<Helper> {
        Vec::new()
    }

    /// Blocks until the payload is ready, as its spec defines it. Needs no timeout: the runtime
    /// sets the deadline.
    ///
    /// # Errors
    ///
    /// [`EngineError`] if the payload cannot become ready any more.
    fn wait_until_ready(&self) -> Result<(), EngineError>;

    /// Returns how long the guest of a ready payload took to boot, if it has a guest that reports it.
    fn boot_times(&self) -> Option<BootTimes> {
        None
    }

    /// Returns the confinement rules that are not applied to the payload, for engines that apply some.
    fn unapplied_rules(&self) -> Vec<UnappliedRule> {
        Vec::new()
    }

    /// Returns how clients run commands beside the payload, if they can.
    fn control_channel(&self) -> Option<&dyn ControlChannel> {
        None
    }

    /// Returns how the payload is paused, if it can be.
    fn pause(&self) -> Option<&dyn Pause> {
        None
    }

    /// Returns how the payload handles requests that only its engine knows, if there are any.
    fn calls(&self) -> Option<&dyn Call> {
        None
    }

    /// Asks the payload to stop, like a power button. Does not wait. The payload is killed if it still
    /// runs after `grace`.
    fn stop(&self, grace: Duration);

    /// Kills the payload and everything that it has started. Does not wait.
    fn kill(&self);

    /// Blocks until the payload and everything that it has started have ended. The shim calls this
    /// once.
    ///
    /// # Errors
    ///
    /// If the engine can no longer wait for the payload. The shim then kills the payload and exits.
    fn wait(&self) -> io::Result<PayloadExit>;
}

/// A payload that serves control frames (`vmm_protocol::frames`).
///
/// One connection serves commands, file transfers and statistics, so these have no objects of their own: a payload
/// responds to a request that it cannot carry out with an error of the kind `Unsupported`. The console has none either: the
/// engine writes it to the box directory, where clients read it without the shim.
pub trait ControlChannel {
    /// Opens a connection whose other end the payload serves. The shim has at most one, and opens it
    /// when the first client needs it.
    ///
    /// # Errors
    ///
    /// [`RequestError`]. With the kind `NotReady`, such as that of a guest that boots, the shim asks again
    /// for the next request.
    fn open(&self) -> Result<OwnedFd, RequestError>;
}

/// How a payload ended, as observed by its engine.
///
/// The shim converts it to an [`Ending`], which also covers payloads that could not start, and
/// panics of the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadExit {
    /// The payload exited with this code. Only the low 8 bits count, as in `exit(3)`.
    Code(i32),
    /// This signal ended the payload.
    Signal(i32),
    /// The kernel killed the payload because its memory limit was reached.
    OutOfMemory,
    /// The guest of a virtual machine ended it.
    Guest(GuestEvent),
    /// The payload ended, and the engine does not know how.
    Unknown,
}

const UNKNOWN_EXIT: &str = "the payload ended without a report of how; see its console log";

impl From<PayloadExit> for Ending {
    fn from(exit: PayloadExit) -> Self {
        match exit {
            PayloadExit::Code(code) => Self::Exited { code: code & 0xff },
            PayloadExit::Signal(signal) => Self::Signaled { signal },
            PayloadExit::OutOfMemory => Self::OutOfMemory,
            PayloadExit::Guest(event) => Self::Guest { event },
            PayloadExit::Unknown => Self::failed(FailureKind::Engine, UNKNOWN_EXIT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_truncated_as_by_the_kernel() {
        for (code, expected) in [(255, 255), (256, 0), (-1, 255)] {
            assert_eq!(
                Ending::from(PayloadExit::Code(code)),
                Ending::Exited { code: expected }
            );
        }
    }
}
