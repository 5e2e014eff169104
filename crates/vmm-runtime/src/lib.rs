//! An async VMM runtime: each box runs inside a shim process of its own, and every way in which a
//! shim can end is seen, recorded and cleared away.
//!
//! Start at [`VmmRuntime`]. The child side is the crate `vmm-shim`; what collects the shims is
//! `shim-reaper`.
//!
//! # When to use something else
//!
//! To run one child that one place awaits, `tokio::process` is enough; to keep children of one's
//! own from becoming zombies, `shim-reaper`. The runtime adds boxes with names and states on disk,
//! restarts of the runtime itself, health checks, and machines that must not outlive it, or must.
//!
//! # What is trusted
//!
//! What the kernel reports wins over what a file says: a payload that runs as the same user can
//! write to everything in its box directory ([`BoxFiles`](vmm_protocol::BoxFiles) lists what that
//! achieves). An exit record is believed if it fits the exit status of the shim; anything else is a
//! crash, and what the payload has started is ended. Before Linux 6.15, and for a shim that ended
//! while no runtime was attached, the record is all there is: it is used, and the cleanup is done
//! whatever it says.
//!
//! An end is on disk before it is reported. A cleanup that is not finished is resumed when the home
//! is next opened. Only where the disk refuses is an end reported first, and saved later.
//!
//! # What it needs of the kernel
//!
//! Linux 5.3, for pidfds. From 6.9 on a pidfd's inode number makes a process's identity unique for
//! the life of the boot; from 6.15 on the exit code of a re-attached shim can be told even if the
//! shim could not write its exit file.
//!
//! # Features
//!
//! * `failpoints`: a named point at which tests inject a fault (`vmm_runtime::attach`), through the
//!   `fail` crate.
//! * `testing`: `testing::PerTestBoxHome`, a home for tests of programs that embed the runtime; it
//!   fails those that leave a shim behind.

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-runtime needs Linux");

mod boxes;
mod core;
mod driver;
mod error;
mod event;
mod failpoint;
mod health;
mod home;
mod lifecycle;
mod metrics;
mod options;
mod process;
mod remove_tree;
mod runtime;
mod serde_millis;
mod shim;
mod shutdown;
#[cfg(feature = "testing")]
pub mod testing;
mod workers;

pub use boxes::{BoxInfo, BoxSpec, BoxStatus};
pub use error::RuntimeError;
pub use event::{BoxChange, BoxEvent, Events};
pub use health::{HealthCheckOptions, HealthState, Probe};
pub use lifecycle::RuntimeShutdown;
pub use metrics::{RuntimeMetrics, RuntimeMetricsStorage};
pub use options::RuntimeOptions;
pub use process::{ProcessExit, ProcessMonitor};
pub use runtime::VmmRuntime;
pub use shim::{
    Keepalive, ShimController, ShimHandler, ShimProgram, ShimProgramError, SpawnedShim, StartError,
};
pub use vmm_protocol::{
    ConsoleOptions, ControlGroup, Ending, FailureKind, FileError, InstanceSpec, PayloadSpec,
    PidRecord, ProcessIdentity, Ready,
};

/// Compiles what the README shows.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
