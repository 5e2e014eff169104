//! An init for a program that runs as pid 1 of a container.
//!
//! The kernel makes pid 1 of a PID namespace the parent of every orphan in the namespace, and drops each
//! signal for which pid 1 has no handler (`pid_namespaces(7)`). A program that was not written as an init
//! therefore leaves zombies, and SIGTERM does not end it. It cannot simply reap the orphans: it would
//! have to wait for *any* child, and would take exit statuses from the code that started those children,
//! such as a [`ShimReaper`](crate::ShimReaper).
//!
//! [`Init::run_if_pid_1`] forks such a process. The parent stays pid 1 and becomes the init. The child
//! returns from the call and goes on as the program, which is not pid 1:
//!
//! ```
//! use std::process::ExitCode;
//!
//! fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
//!     shim_reaper::init::Init::new().run_if_pid_1()?;
//!     // Only the program returns from the call. Now build the tokio runtime.
//! #   Ok(ExitCode::SUCCESS)
//! }
//! ```
//!
//! # What the init does
//!
//! * It forwards every signal that can be caught to the program, real-time signals too, and leaves the
//!   reaction to it. SIGCHLD is not forwarded. SIGCONT continues the process group of the program.
//! * It reaps all its children: the program, and the orphans that the kernel reparents to it.
//! * It ends with the exit code of the program, or with 128 + *n* if signal *n* killed the program. The
//!   kernel then kills all other processes of the namespace, see [`Init::stop_remaining`].
//! * If the init is killed, the kernel kills the program.
//! * It closes all descriptors but the standard streams, changes its working directory to `/`, and its
//!   name to `init`.
//!
//! # What the program gets
//!
//! The program leads a process group of its own, which is in the foreground of the controlling terminal
//! if the group of the init was. It has the signal mask and dispositions, the environment and the
//! descriptors that the process had before the call, with one difference: in `LISTEN_PID`,
//! `WATCHDOG_PID` and `SYSTEMD_EXEC_PID`, its pid replaces that of the init, and `LISTEN_PIDFDID` is
//! removed.
//!
//! # When to use something else
//!
//! * The container runtime can start an init: with `docker run --init`, `podman run --init` and
//!   `systemd-nspawn --as-pid2`, or with `tini` or `catatonit` as the entry point of the image. Those
//!   need no code and are small programs. This init is a copy of yours: it takes about 0.4 MB of
//!   proportional set size beside a small program.
//! * The program has threads before `main`, for example from a library in another language. Then it
//!   cannot be forked.
//! * Only orphans of the reaper's own shims have to be reaped. Then use
//!   [`SpawnOptions::process_group`](crate::SpawnOptions::process_group) or
//!   [`ReaperBuilder::subreaper`](crate::ReaperBuilder::subreaper).
//!
//! # Kernel requirements
//!
//! `/proc` must be mounted. [`Init::run`] needs Linux 3.4 (`PR_SET_CHILD_SUBREAPER(2const)`). See also
//! `credentials(7)` for process groups, and `tty_ioctl(4)` for the foreground.

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

/// The variables in which systemd gives the pid of the process for which they are.
const PID_VARIABLES: [&str; 3] = ["LISTEN_PID", "WATCHDOG_PID", "SYSTEMD_EXEC_PID"];

/// Splits this process into an init and the program. The [module](self) describes both.
///
/// Call [`run_if_pid_1`](Self::run_if_pid_1) or [`run`](Self::run) first in `main`, not below
/// `#[tokio::main]`: a process with threads cannot be forked.
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "an init does nothing until one of its run methods is called"]
pub struct Init {
    forward_to_group: bool,
    stop_grace: Option<Duration>,
}

impl Init {
    /// Creates an init that forwards signals to the program only, and ends with it.
    ///
    /// ```
    /// # use shim_reaper::init::{Init, InitError};
    /// # fn main() -> Result<(), InitError> {
    /// Init::new().run_if_pid_1()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the init forwards signals to the process group of the program, as `tini -g` does. Off by
    /// default. Use it if the program is a shell script, which does not pass signals on.
    ///
    /// ```
    /// # use shim_reaper::init::{Init, InitError};
    /// # fn main() -> Result<(), InitError> {
    /// Init::new().forward_to_group(true).run_if_pid_1()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn forward_to_group(mut self, on: bool) -> Self {
        self.forward_to_group = on;
        self
    }

    /// Makes the init stop the remaining processes when the program has ended: it sends SIGTERM to
    /// each of its children, also to those that the kernel reparents to it meanwhile. After the grace
    /// period it sends SIGKILL. It ends when it has no child left, or 5 seconds after the SIGKILL. It
    /// continues children that are stopped.
    ///
    /// This needs a kernel with `CONFIG_PROC_CHILDREN`, which lists the children of a process. Without it,
    /// this has no effect.
    ///
    /// Without this, the init ends with the program. The kernel then kills all processes if the init
    /// is pid 1 of a namespace, and reparents them otherwise.
    ///
    /// ```
    /// # use shim_reaper::init::{Init, InitError};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), InitError> {
    /// Init::new().stop_remaining(Duration::from_secs(10)).run_if_pid_1()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_remaining(mut self, grace: Duration) -> Self {
        self.stop_grace = Some(grace);
        self
    }

    /// Splits this process if it is pid 1 of its PID namespace, and otherwise returns at once.
    ///
    /// Returns in the program only: the init calls no code of the caller, and ends the process with the exit
    /// code of the program. Call this first in `main`: a process with threads cannot be forked.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// shim_reaper::init::Init::new().run_if_pid_1()?;
    /// tokio::runtime::Runtime::new()?.block_on(async {
    ///     // ...
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the process cannot be split. It is then still one process, and nothing is changed. Only
    /// [`InitError::ProcessGroup`] is an error in the program after the split.
    pub fn run_if_pid_1(self) -> Result<(), InitError> {
        if process::id() == 1 {
            self.split()
        } else {
            Ok(())
        }
    }

    /// Splits this process whatever its pid, and makes the init a subreaper: the kernel reparents the
    /// orphans among its descendants to it. Use it for a service that is not in a container, and
    /// [`run_if_pid_1`](Self::run_if_pid_1) for one that may be.
    ///
    /// # In a shell, a pipeline or below a supervisor
    ///
    /// The process that the parent knows is the init.
    ///
    /// * **Exit code.** The init exits with the code of the program. If signal *n* killed the program, it
    ///   exits with 128 + *n*, as a shell reports it: the parent does not see a death by signal, a shell
    ///   script does not end after SIGINT, and systemd counts 143 after SIGTERM as a failure unless
    ///   `SuccessExitStatus=143` is set.
    /// * **Process group.** The program leaves the process group that it shares with the init. A signal
    ///   to that group, such as that of a shell to a job or a pipeline, reaches the init, which forwards
    ///   it. SIGKILL to that group kills the init, and the kernel then kills the program; SIGSTOP stops
    ///   the init only.
    /// * **Terminal.** If the group of the init is in the foreground, that of the program takes its place.
    ///   In a pipeline, the other processes are then in the background: they do not get Ctrl-C, and stop
    ///   if they read the terminal. The init does not return the foreground at its end, but a shell with
    ///   job control does. In a background job, the program stays in the background.
    ///
    /// If the program stops for the terminal (SIGTSTP, SIGTTIN, SIGTTOU), the init stops too, so that
    /// the shell that has started it notices. If the program changes its user, the kernel no
    /// longer kills it with the init: see `PR_SET_PDEATHSIG(2const)`. Below systemd, `NotifyAccess=all` lets the program
    /// report its readiness.
    ///
    /// ```
    /// # use shim_reaper::init::{Init, InitError};
    /// use std::os::unix::process::parent_id;
    ///
    /// # fn main() -> Result<(), InitError> {
    /// let before = std::process::id();
    /// Init::new().run()?;
    /// // The process has become the init, and this is its child.
    /// assert_eq!(parent_id(), before);
    /// # Ok(())
    /// # }
    /// ```
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
                Err(error.into())
            }
        }
    }
}

/// Separates the child from the init that has forked it.
fn become_program(init: Pid, group: Pid) -> Result<(), InitError> {
    // For an init that is not pid 1. If pid 1 dies, the kernel kills the whole namespace.
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
    // It is the pidfd inode of the init. Without it, `LISTEN_PID` decides.
    sys::remove_env("LISTEN_PIDFDID");
    unistd::setpgid(this, this).map_err(|error| InitError::ProcessGroup(error.into()))?;
    terminal::move_foreground(group, this);
    Ok(())
}
