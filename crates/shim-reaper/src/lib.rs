//! A scoped reaper of child processes for tokio: it reaps the processes that are registered with it,
//! and no others.
//!
//! A daemon that starts children and does not wait for each of them fills the process table with
//! zombies. `waitpid(-1)` on SIGCHLD removes the zombies, but it also takes the exit status of every
//! other child from the code that started it. This crate waits for registered processes only:
//!
//! * A registration lasts until the process has ended. Dropping a handle, a task or a future does not
//!   end it.
//! * A pidfd identifies each process, so that the reaper never waits for, or signals, another process
//!   to which the kernel has given the same pid.
//! * The cost of an exit, and of an idle second, does not grow with the number of running shims.
//!
//! Start with [`ShimReaper`].
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use shim_reaper::{Command, ShimReaper};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let reaper = ShimReaper::start();
//! let shim = reaper.spawn(Command::new("my-shim"))?;
//! let exit = shim.stop(Duration::from_secs(10)).await?; // SIGTERM, wait, SIGKILL
//! println!("{:?}", exit.code());
//! # Ok(())
//! # }
//! ```
//!
//! # Terms
//!
//! | term | means |
//! |---|---|
//! | shim | a registered process. In containerd, a shim is the process that hosts one container; here it is any process |
//! | reap | wait for a zombie: the kernel returns its exit status and releases its pid (`waitid(2)`) |
//! | owner | the code that holds the `Child` of a [registered](ShimReaper::register) pid, and may wait for it |
//! | grace period | the time in which the owner may wait for a dead shim before the reaper reaps it |
//! | foreign wait | a wait by other code for a shim that only the reaper may wait for, such as `waitpid(-1)` in another thread. A process that ignores SIGCHLD has the same effect: the kernel reaps its children |
//! | interval sweep | the periodic check that finds the exits for which the reaper has got no event |
//! | orphan | a process whose parent has exited, so that the kernel has given it a new parent |
//!
//! # Shutdown
//!
//! A daemon gives the reaper the token on which its tasks end, and awaits the shutdown before it exits:
//!
//! ```no_run
//! # async fn example(shutdown: tokio_util::sync::CancellationToken) {
//! use shim_reaper::ShimReaper;
//! use std::time::Duration;
//!
//! let grace = Duration::from_secs(10);
//! let reaper = ShimReaper::builder()
//!     .shutdown_stopping_token(shutdown.clone(), grace)
//!     .start();
//! // ...
//! shutdown.cancelled().await;
//! let report = reaper.shutdown().await;
//! # }
//! ```
//!
//! When the token is cancelled, the reaper sends SIGTERM to all children. After the grace period it
//! sends SIGKILL to those that still run, and it reaps all of them. To leave them running instead, use
//! [`shutdown_token`](ReaperBuilder::shutdown_token).
//!
//! # When to use something else
//!
//! * Use `tokio::process` if one task starts a child and awaits its exit. tokio also reaps children
//!   whose `Child` is *dropped*, but it checks each of them on every SIGCHLD, and only while the tokio
//!   runtime has something to do.
//! * Use an init in a program that is pid 1 of a container, because the orphans of all other processes
//!   become its children: one such as `tini`, or that of the module [`init`].
//!
//! # Kernel requirements
//!
//! Linux on a 64-bit architecture. The reaper detects each of these interfaces at run time, and has a
//! fallback for it:
//!
//! | interface | since | without it |
//! |---|---|---|
//! | `pidfd_open(2)` | 5.3 | pid and start time identify a process; the interval sweep finds exits |
//! | `waitid(2)` with `P_PIDFD` | 5.4 | the reaper waits by pid, after the pidfd has proved that the pid is not recycled |
//! | `CLONE_PIDFD`, and both of these | 5.4 | [`Command`]s of this crate fail to spawn; those of std and tokio do not |
//! | `cgroup.kill` | 5.14 | SIGKILL for a control group goes to each process in it, while the group is frozen |
//! | `IORING_OP_WAITID` | 6.7 | [`io_uring`](ReaperBuilder::io_uring) has no effect |
//! | `POLLHUP` when a pidfd's process is reaped | 6.9 | the reaper notices the owner's wait when the grace period ends |
//! | `PIDFD_SIGNAL_PROCESS_GROUP` | 6.9 | a process group is signalled by its number, only while the shim that leads it is not reaped |
//! | `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT` | 6.15 | the exit status is unknown if other code reaped the process |
//!
//! # Features
//!
//! All are off by default.
//!
//! * `failpoints`: named fail points for fault-injection tests (`shim_reaper::work`,
//!   `shim_reaper::reap`, `shim_reaper::pass`, `shim_reaper::examine`), through the `fail` crate.
//! * `metrics`: `MetricsFacade`, [`Metrics`] that report to the global recorder of the `metrics` crate.
//! * `serde`: `Serialize` and `Deserialize` for [`ShimExit`], [`ReapedBy`], [`ResourceUsage`],
//!   [`ReaperStats`], [`ShutdownReport`] and [`StopReport`]. The fields have the names that they have
//!   here, except where the docs of the type say otherwise. A later version may add fields. A missing
//!   field of stats and reports is read as its default.
//!
//! The feature `simulation` is private: it is for a benchmark of this crate, and what it adds is not part of
//! the API.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("shim-reaper requires Linux");

/// Marks a named place where a test can inject a fault. Expands to nothing without the feature
/// `failpoints`.
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($name);
    };
}

mod adopt;
mod builder;
mod child;
mod command;
mod core;
mod directory;
mod drive;
mod drop_guard;
mod error;
mod exit;
mod exits;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod group;
mod group_signals;
mod handle;
pub mod init;
mod judge;
mod kernel;
mod metrics;
#[cfg(feature = "metrics")]
mod metrics_facade;
mod missing_pidfd;
#[cfg(all(test, shim_reaper_loom))]
mod models;
mod orphans;
mod outbox;
mod panic_payload;
mod parker;
mod pidfd;
mod pipe_runtime;
mod pipes;
mod process_ref;
mod readiness;
mod reaper;
mod register;
mod registry;
#[cfg(feature = "serde")]
mod serde_exit;
#[cfg(feature = "serde")]
mod serde_time;
mod shared;
mod shim;
mod signal;
#[cfg(any(test, feature = "simulation"))]
#[doc(hidden)]
pub mod simulation;
mod spawn_guard;
mod spawn_options;
mod stats;
mod stdio;
mod stop;
mod sweep;
mod sync;
mod sys;
mod thread;
mod timers;
mod tokio_child;
mod wait;
mod wake_all;
mod wake_event;
mod worker;

pub use self::metrics::{Metrics, MetricsSink, ReaperCounter, ReaperGauge};
pub use builder::ReaperBuilder;
pub use child::ChildProcess;
pub use command::SpawnCommand;
pub use drop_guard::DropGuard;
pub use error::{ReaperClosed, RegisterError, RegisterErrorKind};
pub use exit::{ReapedBy, ResourceUsage, ShimExit};
pub use exits::Exits;
pub use group::GroupError;
pub use handle::ShimHandle;
#[cfg(feature = "metrics")]
pub use metrics_facade::MetricsFacade;
pub use pidfd::Pidfd;
#[doc(no_inline)]
pub use pidfd_spawn::{self, Command, Stdio};
pub use process_ref::ProcessRef;
pub use reaper::ShimReaper;
pub use signal::{InvalidSignal, Signal};
pub use spawn_options::SpawnOptions;
pub use stats::{ReaperStats, ShutdownReport, StopReport};
pub use wait::Wait;

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
