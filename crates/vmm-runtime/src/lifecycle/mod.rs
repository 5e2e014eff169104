//! The ways of a box's shim: how it is started, followed, stopped, removed, found again, and ended
//! with the runtime.

mod create;
mod recover;
mod remove;
mod shut_down;
mod start;
mod stop;
mod supervise;

pub(crate) use create::create;
pub(crate) use recover::recover;
pub(crate) use remove::remove;
pub use shut_down::RuntimeShutdown;
pub(crate) use shut_down::shut_down;
pub(crate) use start::start;
pub(crate) use stop::stop;
use supervise::keep_tidying;
pub(crate) use supervise::{settle, settled, supervise, tidy_up};

use std::time::Duration;

/// How long a process may survive SIGKILL before an operation gives up on it.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(10);
