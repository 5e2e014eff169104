//! The gate of a box, which decides which operations may begin:
//!
//! ```text
//!              close                begin_removal             mark_removed
//!   Closed <---------- Open <-----------------------> Removing ---------> Removed
//!                                   cancel_removal
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::ShutdownTarget;
use super::state::{Phase, State};
use crate::shim::terminate;
use crate::{Removal, RuntimeError, ShimHandler};

/// Which operations may begin on a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// All.
    Open,
    /// None: a removal is in progress.
    Removing,
    /// None: the box was removed.
    Removed,
    /// None: the runtime is shutting down.
    Closed,
}

impl State {
    pub(super) fn not_found(&self) -> RuntimeError {
        RuntimeError::NotFound {
            wanted: self.record.id.to_string(),
        }
    }

    /// Fails unless operations may begin.
    pub(super) fn check_gate(&self) -> Result<(), RuntimeError> {
        match self.gate {
            Gate::Open => Ok(()),
            Gate::Removing | Gate::Removed => Err(self.not_found()),
            Gate::Closed => Err(RuntimeError::Closed),
        }
    }

    /// Lets no other operation begin. Returns the shim that the removal must kill, if there is one.
    pub(super) fn begin_removal(
        &mut self,
        removal: Removal,
    ) -> Result<Option<Arc<ShimHandler>>, RuntimeError> {
        self.check_gate()?;
        if removal != Removal::Force && self.is_busy() {
            return Err(RuntimeError::Running {
                id: self.record.id.clone(),
            });
        }
        self.gate = Gate::Removing;
        self.note_stop();
        self.interrupt_start();
        Ok(self.request_stop())
    }

    /// Lets operations begin again after a failed removal.
    pub(super) fn cancel_removal(&mut self) {
        if self.gate == Gate::Removing {
            self.gate = Gate::Open;
        }
    }

    /// Lets no operation begin any more because the box was removed.
    pub(super) fn mark_removed(&mut self) {
        self.gate = Gate::Removed;
    }

    /// Lets no further operation begin because the runtime is closing.
    pub(super) fn close(&mut self) {
        if self.gate == Gate::Open {
            self.gate = Gate::Closed;
        }
    }

    /// Closes the gate because the runtime shuts down. Returns the shim that must end with it, if
    /// there is one.
    pub(super) fn begin_shutdown(&mut self) -> Option<ShutdownTarget> {
        self.close();
        let grace = self.record.spec.stop_grace;
        let detached = self.is_detached();
        match &mut self.phase {
            Phase::Starting {
                interrupt, shim, ..
            } => {
                interrupt.cancel();
                shim.clone().map(|shim| ShutdownTarget {
                    shim,
                    grace: Duration::ZERO,
                })
            }
            Phase::Running {
                shim,
                stop_requested,
                ..
            } if !detached && shim.try_exit().is_none() => {
                *stop_requested = true;
                Some(ShutdownTarget {
                    shim: shim.handle().clone(),
                    grace,
                })
            }
            _ => None,
        }
    }

    /// Closes the gate because the runtime was dropped, and releases the watchdog, so that an
    /// attached shim ends.
    pub(super) fn release_watchdog(&mut self) {
        self.close();
        match &self.phase {
            Phase::Idle | Phase::Exited { .. } => {}
            Phase::Starting {
                interrupt, shim, ..
            } => {
                interrupt.cancel();
                // No task may be left that could kill it.
                if let Some(shim) = shim {
                    terminate::request_kill(shim);
                }
            }
            Phase::Running { shim, .. } => shim.release_watchdog(),
        }
    }
}
