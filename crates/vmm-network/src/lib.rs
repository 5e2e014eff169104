//! Connects a guest to a network namespace.
//!
//! The host side is [`Namespace`]: it reads the interfaces of a namespace, and creates a tap device for
//! each, which exchanges all frames with it. The guest side is [`configure`], which gives the interfaces of
//! the guest the same names, addresses and routes. Both speak netlink to the kernel, and block.
//!
//! ```no_run
//! use std::path::Path;
//! use vmm_network::Namespace;
//!
//! let namespace = Namespace::open(Path::new("/run/netns/pod"))?;
//! for tap in namespace.attach()? {
//!     println!("{} has {:?}", tap.interface.name, tap.interface.addresses);
//!     // Pass `tap.fd` to the VMM.
//! }
//! // After the VMM has ended.
//! namespace.clean_up()?;
//! # Ok::<(), vmm_network::NetworkError>(())
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-network needs Linux");

mod configure;
mod error;
mod interfaces;
mod loopback;
mod message;
mod namespace;
mod redirect;
mod socket;
mod sys;
#[cfg(test)]
#[path = "../tests/common/namespace.rs"]
mod test_namespace;

pub use configure::{bring_up_loopback, configure};
pub use error::NetworkError;
pub use loopback::LoopbackListener;
pub use namespace::{Namespace, Tap};

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
