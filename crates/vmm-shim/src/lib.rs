//! The child side of a VMM runtime: a *shim* runs the payload of one box, and ends with it.
//!
//! The runtime (crate `vmm-runtime`) starts one shim per box. A shim
//!
//! 1. publishes who it is in the file `shim.pid`, before anything else;
//! 2. reads an [`InstanceSpec`] as one line of JSON from its stdin, because it can hold secrets;
//! 3. has an [`Engine`] start the payload, and reports that it is ready on its stdout;
//! 4. ends when the payload has ended, when it is told to (SIGTERM), or when the runtime is gone:
//!    its stdin stays open as the *watchdog*, and hangs up with the runtime. It also ends when the
//!    runtime's [process](RuntimeProcess) has exited, though a forked child of that still holds the
//!    watchdog. A detached shim has no watchdog;
//! 5. leaves an [`ExitRecord`] in the file `exit`, on every ending that code can see.
//!
//! Use it as a library, so that one program is its own shim:
//!
//! ```no_run
//! // First of all in `main`; returns unless this process is a shim.
//! vmm_shim::run_if_shim();
//! // ... open the runtime ...
//! ```
//!
//! or install the program `vmm-shim`, made from it. With engines of one's own: [`Shim`].
//!
//! # Signals
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT, SIGHUP | the payload is asked to stop; the shim ends when it has |
//! | [`KILL_SIGNAL`] | the payload and its descendants are killed; the shim ends |
//! | SIGKILL | the payload dies with the shim, within limits; nothing is recorded, and output that is still in the pipe is lost |
//!
//! An order that comes before the spec ends the shim at once; one that comes while the engine
//! starts the payload is obeyed when it has, or when
//! [that takes too long](InstanceSpec::stop_grace_ms).
//!
//! The kernel kills the payload of the engine [`Process`] when its shim dies (`PR_SET_PDEATHSIG`),
//! but forgets to once the payload changes its credentials or executes a program that does,
//! `prctl(2)`. It never does so for what the payload has started: a runtime ends that, which it
//! finds by the [`VMM_BOX_DIR`](BOX_DIR_VARIABLE) in its environment.
//!
//! # What a payload can write to
//!
//! A payload of the same user can write to the box directory, and so to every record there. The
//! shim keeps in memory what its own cleanup needs, and exits with the code that its record gives,
//! so that a runtime can tell a forged record from a true one: see [`BoxFiles`].
//!
//! # What it needs of the kernel
//!
//! | Linux | for what |
//! |---|---|
//! | 3.4 | the payload's orphans come to the shim (`PR_SET_CHILD_SUBREAPER`) |
//! | 3.5 | `/proc/<pid>/task/<tid>/children`, to find them, with `CONFIG_PROC_CHILDREN` |
//! | 3.17 | a payload with a stdin (`memfd_create(2)`) |
//! | 5.3 | the end of a process is seen without polling (`pidfd_open(2)`); can do without, but for the exit of a runtime whose watchdog a forked child holds |
//! | 6.9 | the inode number of a pidfd is part of an identity; can do without |

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-shim needs Linux");

mod control;
mod instance;
mod recorder;
mod shim;
mod standard_streams;

pub use shim::{Shim, run_if_shim};
pub use vmm_engine::{Engine, EngineError, Payload, PayloadExit, Process};
pub use vmm_protocol::{
    ARGV0, BOX_DIR_VARIABLE, BoxFiles, ConsoleOptions, ControlGroup, Ending, ExitRecord, FILES,
    FailureKind, FileError, InstanceSpec, Invocation, KILL_SIGNAL, PayloadSpec, PidLookup,
    PidRecord, ProcessIdentity, Ready, Report, RuntimeProcess, can_be_shim, is_resource_exhaustion,
    open_log, read_file, truncate_text, write_file,
};
