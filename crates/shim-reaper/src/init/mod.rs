//! An init for a program that is pid 1 of a container: it splits the process into an init and the
//! program.
//!
//! The kernel makes pid 1 of a pid namespace the parent of every orphan in it, and ignores each signal
//! for which it has no handler. A program that was not written for this fills the process table with
//! zombies, and is not ended by SIGTERM. To reap the orphans it would have to wait for *any* child,
//! which takes the exit status from the code that started that child, such as a
//! [`ShimReaper`](crate::ShimReaper). With an [`Init`], the program is not pid 1:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
//!     shim_reaper::init::Init::new().run_if_pid_1()?;
//!     // From here on as in any other place. Now build the tokio runtime.
//! #   Ok(ExitCode::SUCCESS)
//! }
//! ```
//!
//! # What the init does
//!
//! It forks. The child returns from the call, and is the program. The calling process stays the init:
//!
//! * It forwards every signal that can be caught to the program, real-time signals too, and leaves the
//!   reaction to it. SIGCHLD is not forwarded. SIGCONT continues the process group of the program.
//! * It reaps all its children: the program, and the orphans that the kernel reparents to it.
//! * It ends with the exit code of the program, or with 128 + *n* if signal *n* killed it. The kernel
//!   then kills all other processes of the namespace, see [`Init::stop_remaining`].
//! * If the init is killed, the kernel kills the program.
//! * It keeps only the standard streams open, and `/` as its working directory. Its name is `init`.
//!
//! The program is the leader of a process group of its own, which is in the foreground of the
//! controlling terminal if the group of the init was. It gets the signal mask and dispositions, the
//! environment and the descriptors as this process had them. In `LISTEN_PID`, `WATCHDOG_PID` and
//! `SYSTEMD_EXEC_PID`, its pid replaces that of the init; `LISTEN_PIDFDID` is removed.
//!
//! # When to use something else
//!
//! * If the container runtime can start an init, let it: `docker run --init`, `podman run --init` and
//!   `systemd-nspawn --as-pid2` need no code. So does `tini` or `catatonit` as the entry point of the
//!   image. They are small programs, while this init is a copy of yours: 0.4 MB of proportional set
//!   size for the example `init`, most of it shared with the program.
//! * If the program has threads before `main`, for example from a library in another language, it
//!   cannot be forked.
//! * If only orphans of the reaper's own shims have to be reaped, use
//!   [`SpawnOptions::process_group`](crate::SpawnOptions::process_group).
//!
//! # Kernel requirements
//!
//! `/proc` must be mounted. See `pid_namespaces(7)` for pid 1, `PR_SET_CHILD_SUBREAPER(2const)` (Linux
//! 3.4) for [`Init::run`], `credentials(7)` for process groups and `tty_ioctl(4)` for the foreground.

mod error;
mod supervise;
mod terminal;

use std::process;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{self, ForkResult, Pid};

use crate::sys::init as sys;

pub use error::InitError;

/// The variables in which systemd names the process that they are for.
const PID_VARIABLES: [&str; 3] = ["LISTEN_PID", "WATCHDOG_PID", "SYSTEMD_EXEC_PID"];

/// Splits this process into an init and the program. See the [module](self) for what the init does.
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "an init does nothing until one of its run methods is called"]
pub struct Init {
    forward_to_group: bool,
    stop_grace: Option<Duration>,
}

impl Init {
    /// Creates an init that forwards signals to the program only, and ends with it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the init forwards signals to the process group of the program, as `tini -g` does.
    /// Use it if the program is a shell that does not pass them on. Off by default.
    pub fn forward_to_group(mut self, on: bool) -> Self {
        self.forward_to_group = on;
        self
    }

    /// Makes the init stop the remaining processes when the program has ended: it sends SIGTERM to
    /// each of its children, also to those that the kernel reparents to it meanwhile. After the grace
    /// period it sends SIGKILL. It ends when it has no child left, or 5 seconds after the SIGKILL.
    ///
    /// Without this, the init ends with the program. The kernel then kills all processes if the init
    /// is pid 1 of a namespace, and reparents them otherwise.
    pub fn stop_remaining(mut self, grace: Duration) -> Self {
        self.stop_grace = Some(grace);
        self
    }

    /// Splits this process if it is pid 1 of its pid namespace, and otherwise returns at once.
    ///
    /// Returns in the program only. Call it first in `main`: a process with threads cannot be forked.
    ///
    /// # Errors
    ///
    /// Fails if the process cannot be split. It is then still one process, and nothing is changed; only
    /// [`InitError::ProcessGroup`] is an error in the program after the split.
    pub fn run_if_pid_1(self) -> Result<(), InitError> {
        if process::id() == 1 {
            self.split()
        } else {
            Ok(())
        }
    }

    /// Splits this process whatever its pid, and makes the init a subreaper: the kernel reparents the
    /// orphans among its descendants to it. Use it for a service that is not in a container.
    ///
    /// If the program stops for the terminal (SIGTSTP, SIGTTIN, SIGTTOU), the init stops too, so that
    /// the shell that has started it notices. If the program changes its user, it no longer dies with
    /// the init: see `PR_SET_PDEATHSIG(2const)`. Below systemd, `NotifyAccess=all` lets the program
    /// report its readiness.
    ///
    /// # Errors
    ///
    /// As for [`run_if_pid_1`](Self::run_if_pid_1).
    pub fn run(self) -> Result<(), InitError> {
        let before =
            prctl::get_child_subreaper().map_err(|error| InitError::Subreaper(error.into()))?;
        prctl::set_child_subreaper(true).map_err(|error| InitError::Subreaper(error.into()))?;
        let result = self.split();
        if result.is_err() {
            let _ = prctl::set_child_subreaper(before);
        }
        result
    }

    fn split(self) -> Result<(), InitError> {
        let init = Pid::this();
        let group = unistd::getpgrp();
        let signals = sys::block_signals();
        match sys::fork() {
            Ok(ForkResult::Parent { child }) => sys::end_with(move || {
                supervise::supervise(child, self.forward_to_group, self.stop_grace)
            }),
            Ok(ForkResult::Child) => {
                let result = become_program(init, group);
                signals.restore();
                result
            }
            Err(error) => {
                signals.restore();
                Err(error)
            }
        }
    }
}

/// Separates the child from the init that has forked it.
fn become_program(init: Pid, group: Pid) -> Result<(), InitError> {
    // As pid 1 dies, the kernel kills its namespace; this is for an init that is not pid 1.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    if unistd::getppid() != init {
        process::exit(128 + Signal::SIGKILL as i32);
    }
    let this = Pid::this();
    for name in PID_VARIABLES {
        if std::env::var(name).is_ok_and(|pid| pid == init.to_string()) {
            sys::set_env(name, &this.to_string());
        }
    }
    // It has the identity of the init in another form. Without it, `LISTEN_PID` decides.
    sys::remove_env("LISTEN_PIDFDID");
    unistd::setpgid(this, this).map_err(|error| InitError::ProcessGroup(error.into()))?;
    terminal::move_foreground(group, this);
    Ok(())
}
