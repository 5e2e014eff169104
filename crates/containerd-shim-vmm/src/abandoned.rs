//! Pods whose processes have ended, and for which containerd does not call `delete`: version 1.6 only removes the bundle
//! if the server ends before containerd has connected to it.

use std::fs;
use std::path::Path;

use vmm_protocol::with_causes;

use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::leftover_events::{self, Continuation};
use crate::log;
use crate::pod::has_ended;
use crate::state_dir::{Owner, StateDir};

/// Starts a process for each abandoned pod, which removes what is left of it. An error is written to the log.
pub(crate) fn clean_up(parent: &Path) {
    let clean_up = || -> Result<(), ShimError> {
        // No pod is without its records then, and no other process starts a second cleanup.
        let _lock = StateDir::lock(parent)?;
        let entries = fs::read_dir(parent).map_err(ShimError::file("read", parent))?;
        for entry in entries.flatten() {
            let state = StateDir::new(entry.path());
            if let Some(owner) = abandoned_by(&state) {
                leftover_events::spawn(&owner, &state, Continuation::Finish)?;
            }
        }
        Ok(())
    };
    if let Err(error) = clean_up() {
        log(with_causes(&error));
    }
}

/// Returns the owner of a pod if the pod is abandoned.
fn abandoned_by(state: &StateDir) -> Option<Owner> {
    // Without both records, it is the pod of another version of this program.
    let (owner, process) = (state.owner()?, state.process()?);
    if !has_ended(&process) {
        return None;
    }
    // While the bundle has the address of the pod, containerd calls `delete`. If it cannot be read, it may have it.
    let address = Bundle::new(&owner.bundle).address().ok()?;
    (address != Some(state.address())).then_some(owner)
}
