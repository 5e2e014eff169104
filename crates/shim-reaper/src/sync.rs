//! The synchronization primitives that the models of [`crate::models`] replace by those of loom.

#[cfg(not(all(test, shim_reaper_loom)))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(all(test, shim_reaper_loom))]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
