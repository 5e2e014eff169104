//! Copies file trees into tar streams and out of them, without leaving the destination.
//!
//! Both ends of a copy between a host and a guest use it, and neither trusts the archive of the
//! other. Use the crate `tar` for archives of a trusted source.
//!
//! ```
//! use vmm_archive::{CreateOptions, ExtractOptions, create, extract};
//!
//! # let dir = tempfile::tempdir()?;
//! # std::fs::create_dir(dir.path().join("config"))?;
//! # std::fs::write(dir.path().join("config/name"), "web")?;
//! let mut archive = Vec::new();
//! create(&dir.path().join("config"), &mut archive, &CreateOptions::default())?;
//!
//! let copy = dir.path().join("copy");
//! extract(&archive[..], &copy, &ExtractOptions::default())?;
//! assert_eq!(std::fs::read(copy.join("config/name"))?, b"web");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-archive needs Linux");

mod attributes;
mod create;
mod destination;
mod error;
mod extract;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod member;
mod new_file;
mod node;
mod tree;

pub use create::{CreateOptions, create};
pub use error::ArchiveError;
pub use extract::{ExtractOptions, extract};
