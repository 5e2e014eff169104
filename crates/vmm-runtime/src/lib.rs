//! An async VMM runtime. Each box runs inside its own shim, a child process that hosts the payload.
//! The runtime detects, records and cleans up after every way in which a shim can end.
//!
//! Start at [`VmmRuntime`]. The crate `vmm-shim` is the child side; the crate `shim-reaper` reaps
//! the shims.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use vmm_runtime::{BoxSpec, RuntimeOptions, VmmRuntime};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // `main` begins with `vmm_shim::run_if_shim()`.
//! let runtime = VmmRuntime::open(RuntimeOptions::new("/var/lib/boxes")).await?;
//! runtime.create(BoxSpec::new(["sleep", "60"]).name("nap")).await?;
//! runtime.start("nap").await?;
//! runtime.stop("nap").await?;
//! runtime.shutdown(Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```
//!
//! # When to use something else
//!
//! To run one child that one task awaits, use `tokio::process`. To keep your own children from
//! becoming zombies, use `shim-reaper`. This crate adds named boxes whose state is on disk,
//! recovery after a restart of the runtime, health checks, and payloads that end with the runtime
//! (attached) or outlive it (detached).
//!
//! # What is trusted
//!
//! What the kernel reports wins over what a file says: a payload that runs as the same user can
//! write to every file in its box directory ([`BoxDir`] lists the consequences). The runtime trusts
//! an exit record only if it matches the exit status of the shim.
//! Otherwise it reports a crash and kills everything that the payload started. Before Linux 6.15,
//! and for a shim that ended while no runtime was attached, no exit status is available: the
//! runtime then uses the record and cleans up in every case.
//!
//! The runtime saves how a box ended, and kills and awaits what the run has left, before it reports
//! the end. Only if the disk refuses, or a process survives SIGKILL, does it report first, and
//! retries in the background. The next runtime that opens the home resumes an unfinished cleanup.
//!
//! # Process-wide state
//!
//! Four statics belong to the process rather than to one [`VmmRuntime`]:
//!
//! * The process-wide reaper reaps the children that belong to no open runtime: commands of health
//!   checks, and detached shims whose runtime has shut down. The first use starts it, on its own
//!   thread. It runs until the process exits, and it waits only for children that were registered
//!   with it.
//! * The list of closing homes holds the homes of runtimes that were dropped but have not finished
//!   yet. [`VmmRuntime::open`] waits until the previous runtime of the same process has released the
//!   home.
//! * The list of locked homes holds the homes of the open runtimes. It distinguishes a home that
//!   this process has open from the stale lock of an earlier process with the same pid.
//! * The [reserved descriptors](shim_reaper::pidfd_spawn::reserve_descriptors) keep the cost of a start from
//!   growing with the number of boxes. They stay open, and the process must not close them.
//!
//! The feature `testing` adds a list of the shims that this process has spawned.
//!
//! # Kernel requirements
//!
//! Linux 5.3 or later, for pidfds. From Linux 6.9 the inode number of a pidfd makes a process
//! identity unique for the life of the boot. From Linux 6.15 the kernel reports the exit code of a
//! re-attached shim even if the shim could not write its exit record.
//!
//! # Features
//!
//! * `failpoints`: a named point (`vmm_runtime::attach`) at which tests inject a fault through the
//!   crate `fail`.
//! * `testing`: `testing::PerTestBoxHome`, a temporary home for tests of programs that embed the
//!   runtime. It fails a test that leaves a shim behind.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-runtime needs Linux");

mod boxes;
mod console;
mod core;
mod driver;
mod error;
mod event;
mod exec;
mod failpoint;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod health;
mod home;
mod images;
mod lifecycle;
mod metrics;
mod options;
mod pause_watcher;
mod process;
mod queries;
mod restart;
mod runtime;
mod serde_millis;
pub mod shim;
mod shutdown_task;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod workers;

pub use boxes::{
    BoxCounts, BoxId, BoxInfo, BoxSpec, BoxStatus, HelperCounts, InvalidBoxId, ListOptions,
};
pub use console::{ConsoleError, ConsoleQuery, ConsoleReader, ConsoleStream};
pub use error::RuntimeError;
pub use event::{BoxChange, BoxEvent, Events};
pub use exec::{ExecError, ExecOutput, Execution, ExecutionInput, ExecutionOutput, FileArchive};
pub use health::{HealthCheckOptions, HealthState, Probe};
pub use images::{Image, ImageError, ImageInfo, ImageStore, ImageTable, StagedImage};
pub use lifecycle::{Removal, RuntimeShutdown};
pub(crate) use metrics::RuntimeMetricsStorage;
pub use metrics::{DurationHistogram, ExecutionMetrics, GuestBootMetrics, RuntimeMetrics};
pub use options::{PayloadCheck, PayloadCleanup, RuntimeOptions};
pub use process::{BoxUsage, ProcessExit, ProcessMonitor};
pub use queries::BoxStats;
pub use restart::{InvalidRestartPolicy, RestartPolicy};
pub use runtime::VmmRuntime;
pub use shim::{LastOutput, ShimProgram, ShimProgramError, StartError};
pub(crate) use shim::{ShimController, ShimHandler};
pub use vmm_protocol::frames::{
    ExecSpec, Execution as ExecutionInfo, GetSpec, GuestStats, PutSpec, RequestError,
    RequestErrorKind, TerminalSize,
};
pub use vmm_protocol::{
    BootTimes, BoxDir, ConfinementRule, ConsoleOptions, ControlGroup, Ending, ExitRecord,
    FailureKind, FileError, GuestEvent, HostPolicy, InstanceSpec, PayloadSpec, PayloadSpecError,
    PidRecord, ProcessIdentity, Ready, UnappliedRule, with_causes,
};

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
