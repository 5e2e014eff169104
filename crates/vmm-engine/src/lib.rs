//! Engines: the code that starts and controls the payload of a box, inside its shim.
//!
//! A shim (crate `vmm-shim`) hosts one payload. It has one or more [`Engine`]s, and the spec of the
//! box names one of them. The engine [`Process`] runs a command, the engine [`Qemu`] a virtual
//! machine. To run something else, implement [`Engine`] and [`Payload`], and pass the
//! engine to `vmm_shim::Shim`.
//!
//! Use this crate to write an engine. To run boxes with the engines that exist, use `vmm-runtime`;
//! to build a shim program, use `vmm-shim`, which re-exports the traits.
//!
//! ```
//! use std::path::Path;
//!
//! use vmm_engine::{Engine, EngineError, Payload, Process};
//! use vmm_protocol::InstanceSpec;
//!
//! /// Runs commands with a lower scheduling priority.
//! struct Nice;
//!
//! impl Engine for Nice {
//!     fn name(&self) -> &str {
//!         "nice"
//!     }
//!
//!     fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
//!         let mut spec = spec.clone();
//!         spec.payload.command.insert(0, "nice".to_owned());
//!         Process.start(&spec, dir)
//!     }
//! }
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-engine needs Linux");

mod call;
pub mod descendants;
mod detached_mount;
mod engine;
mod error;
mod helper;
mod pause;
mod process;
mod qemu;
mod sys;

pub use call::Call;
pub use detached_mount::{DetachedMount, MountPropagation};
pub use engine::{ControlChannel, Engine, Payload, PayloadExit};
pub use error::EngineError;
pub use helper::Helper;
pub use pause::Pause;
pub use pidfd_spawn::Command;
pub use process::Process;
pub use qemu::{
    Accelerator, Disk, DiskAccess, Network, Qemu, QemuOptions, Share, run_if_kvm_probe,
};
pub use vmm_protocol::frames::RequestError;

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
