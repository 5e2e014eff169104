//! How a shim runs a payload: the traits [`Engine`] and [`Payload`], and the engine [`Process`].
//!
//! A shim (crate `vmm-shim`) has one or more engines; the spec of a box names one of them. To run
//! something other than a command, implement [`Engine`] and give it to `vmm_shim::Shim`.

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-engine needs Linux");

pub mod descendants;
mod engine;
mod error;
mod process;
pub mod signals;

pub use engine::{Engine, Payload, PayloadExit};
pub use error::EngineError;
pub use process::{Process, become_payload};
