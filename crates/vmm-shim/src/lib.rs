//! The shim: the child process of a VMM runtime that hosts the payload of one box.
//!
//! Use this crate for a program that embeds a VMM runtime (crate `vmm-runtime`) and is its own
//! shim:
//!
//! ```no_run
//! // Call it first in `main`. It returns unless this process is a shim.
//! vmm_shim::run_if_shim();
//! // ... open the runtime ...
//! ```
//!
//! To add an engine of your own, use [`Shim`]. If your program cannot call a function first in
//! `main`, install the program `vmm-shim` of this crate, and pass its path to the runtime. To read
//! a box directory, use `vmm-protocol`; to write an engine without a shim program, `vmm-engine`.
//!
//! # Lifecycle
//!
//! The runtime starts one shim per box. A shim
//!
//! 1. writes its [`PidRecord`] to the file `shim.pid`, before anything else;
//! 2. reads an [`InstanceSpec`] as one line of JSON from its stdin, because the spec can contain
//!    secrets;
//! 3. starts the payload through an [`Engine`], and reports on its stdout when the payload is
//!    ready;
//! 4. waits until the payload has ended, or until a signal or the watchdog requests the end;
//! 5. writes an [`ExitRecord`] to the file `exit`, unless SIGKILL or `exit(3)` ends it.
//!
//! A runtime can start shims before it needs them. Such a *warm shim* first waits for its
//! [`Assignment`] to a box. It then has the arguments, the current directory and the stderr of a shim
//! that was started for this box, and continues with step 1.
//!
//! The *watchdog* is the stdin of an attached shim, which stays open after the spec. It hangs up
//! when the runtime exits or releases it. An attached shim also ends when the [process of the
//! runtime](RuntimeProcess) exits, because a forked child of the runtime may hold the pipe open. A
//! detached shim has no watchdog. Until its payload is ready, it ends when the runtime closes the pipe for
//! its report, or exits.
//!
//! # Signals
//!
//! | signal | effect |
//! |---|---|
//! | SIGTERM, SIGINT, SIGHUP | The shim asks the payload to stop, and exits after it. The grace period is [that of the signal](stop_signal), or else that of the spec. |
//! | [`KILL_SIGNAL`] | The shim kills the payload and its descendants, and exits. |
//! | SIGKILL | The kernel kills the payload with the shim, with the exceptions below. There is no exit record, and output that is still in the pipe is lost. |
//!
//! A signal that arrives before the spec ends the shim immediately. If a signal arrives while the
//! engine starts the payload, the shim kills the payload after the start. If the start takes longer
//! than the grace period, the shim kills what the engine has started, and exits.
//!
//! The kernel kills the payload of the engine [`Process`] when its shim dies (`PR_SET_PDEATHSIG`),
//! unless the payload has changed its credentials or executed a set-user-ID program, `prctl(2)`. It
//! does not kill the descendants of the payload. The runtime finds and kills them by the
//! environment variable [`VMM_BOX_DIR`](BOX_DIR_VARIABLE).
//!
//! # Helper processes
//!
//! A payload can need other processes, such as virtiofsd for a shared directory of a guest. The engine
//! [declares](Payload::helpers) them, and the shim starts them in the control group of the payload. If one
//! ends while the payload runs, the shim kills the payload, and records [`Ending::Helper`]. They die with
//! the shim, as the payload does. Their output goes to `helpers.log`, which keeps the last 64 KiB.
//!
//! # What a payload can forge
//!
//! A payload that runs as the same user can write to the box directory, and so to every record
//! there. The shim keeps in memory what its own cleanup needs. It exits with the code that its
//! record contains, so that the runtime can detect a forged record. See [`BoxDir`].
//!
//! # Kernel requirements
//!
//! | Linux | needed for |
//! |---|---|
//! | 3.4 | The shim adopts the orphans of the payload (`PR_SET_CHILD_SUBREAPER`). |
//! | 3.5 | The shim finds these orphans (`/proc/<pid>/task/<tid>/children`, `CONFIG_PROC_CHILDREN`). |
//! | 3.17 | A payload can have a stdin (`memfd_create(2)`). |
//! | 5.3 | The shim observes the exit of a process without polling (`pidfd_open(2)`). Optional, except to observe the exit of a runtime while a forked child holds the watchdog. |
//! | 6.9 | The inode number of a pidfd is part of a process identity. Optional. |

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-shim needs Linux");

mod control;
mod exit_reporter;
mod helpers;
mod hub;
mod instance;
mod shim;
mod standard_streams;
mod sys;
mod warm;

pub use shim::{Shim, run_if_shim};
pub use sys::{release_free_memory, use_one_heap};
pub use vmm_engine::{
    Accelerator, Call, Command, ControlChannel, DetachedMount, Disk, DiskAccess, Engine,
    EngineError, Helper, MountPropagation, Network, Pause, Payload, PayloadExit, Process, Qemu,
    QemuOptions, RequestError, Share,
};
pub use vmm_protocol::{
    ARGV0, Assignment, BOX_DIR_VARIABLE, BoxDir, BoxFiles, ConsoleOptions, ControlGroup, Ending,
    ExitRecord, FILES, FailureKind, FileError, GuestEvent, InstanceSpec, Invocation, KILL_SIGNAL,
    PayloadSpec, PidLookup, PidRecord, ProcessIdentity, Ready, Report, RuntimeProcess, can_be_shim,
    is_resource_exhaustion, open_log, read_file, stop_signal, truncate_text, write_file,
};

/// The version of this crate. A daemon compares it with the output of `vmm-shim --version` before it
/// uses that program for its shims.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
