//! A scoped shim reaper for tokio: it collects exactly the child processes that it was given.
//!
//! A daemon that starts children and does not `wait` for each of them fills the process table with
//! zombies. `waitpid(-1)` on SIGCHLD cures that and steals the exit status of every other child in
//! the process. This crate waits on registered processes only, and:
//!
//! * a registration ends when its process has, whatever handle, task or future is dropped;
//! * a process is identified by a pidfd, so a recycled pid is never waited on or signalled;
//! * what an exit or an idle second costs does not grow with the number of live shims.
//!
//! Start at [`ShimReaper`].
//!
//! # When to use something else
//!
//! `tokio::process` is enough where one place starts a child and awaits it to its end. Its way of
//! collecting *dropped* children probes each of them on every SIGCHLD, and only while the runtime
//! has something to do. A reaper of the pid-1 kind (`tini`) is for orphans of anybody.
//!
//! # What it needs of the kernel
//!
//! Linux. Everything is detected at run time, and has a fallback:
//!
//! | interface | since | without it |
//! |---|---|---|
//! | `pidfd_open(2)` | 5.3 | identity is pid and start time; deaths are found by the interval sweep |
//! | `waitid(2)` with `P_PIDFD` | 5.4 | waits by pid, while the pidfd proves that the pid is still its own |
//! | `POLLHUP` when a pidfd's process is reaped | 6.9 | an owner's wait is noticed when the grace period ends |
//! | `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT` | 6.15 | an exit that somebody else collected has no status |
//!
//! # Features
//!
//! * `failpoints`: named points at which tests inject faults (`shim_reaper::work`,
//!   `shim_reaper::collect`, `shim_reaper::pass`, `shim_reaper::examine`), through the `fail` crate.

#[cfg(not(target_os = "linux"))]
compile_error!("shim-reaper needs Linux");

mod builder;
mod core;
mod counters;
mod directory;
mod effects;
mod error;
mod exit;
mod exits;
mod failpoint;
mod handle;
mod intake;
mod kernel;
mod metrics_sink;
mod pidfd;
mod readiness;
mod reaper;
mod registry;
mod resource_usage;
mod shim;
mod shutdown_report;
mod spawn_options;
mod stats;
mod sweep;
mod sys;
mod worker;

pub use builder::ReaperBuilder;
pub use error::{ReaperClosed, RegisterError, RegisterErrorKind};
pub use exit::{CollectedBy, ShimExit};
pub use exits::Exits;
pub use handle::ShimHandle;
pub use metrics_sink::MetricsSink;
pub use nix::sys::signal::Signal;
pub use pidfd::Pidfd;
pub use reaper::ShimReaper;
pub use resource_usage::ResourceUsage;
pub use shutdown_report::ShutdownReport;
pub use spawn_options::SpawnOptions;
pub use stats::ReaperStats;
