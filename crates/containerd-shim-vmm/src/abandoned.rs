//! Pods whose processes have ended, and for which containerd does not call `delete`: version 1.6 only removes the bundle
//! if the server ends before containerd has connected to it.

use std::fs;
use std::path::Path;

use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::leftover_events::{self, Continuation};
use crate::state_dir::{Owner, StateDir};

/// Starts a process for each abandoned pod, which removes what is left of it. Calls the function with each error.
pub(crate) fn clean_up(parent: &Path, mut report: impl FnMut(ShimError)) {
    let mut clean_up = || -> Result<(), ShimError> {
        // No pod is without its records then, and no other process starts a second cleanup.
        let _lock = StateDir::lock(parent)?;
        let entries = fs::read_dir(parent).map_err(ShimError::file("read", parent))?;
        for entry in entries.flatten() {
            let state = StateDir::new(entry.path());
            if let Some(owner) = abandoned_by(&state) {
                let spawned = leftover_events::spawn(&owner, &state, Continuation::Finish);
                spawned.unwrap_or_else(&mut report);
            }
        }
        Ok(())
    };
    clean_up().unwrap_or_else(report);
}

/// Returns the owner of a pod if the pod is abandoned.
fn abandoned_by(state: &StateDir) -> Option<Owner> {
    // Without the records, it is the pod of another version of this program.
    let owner = state.owner()?;
    if !state.is_left()? {
        return None;
    }
    // While the bundle has the address of the pod, containerd calls `delete`. If it cannot be read, it may have it.
    let address = Bundle::new(&owner.bundle).address().ok()?;
    (address != Some(state.address())).then_some(owner)
}

#[cfg(test)]
mod tests {
    use std::process::Command as StdCommand;

    use pidfd_spawn::Command;
    use vmm_protocol::PidRecord;

    use super::*;
    use crate::state_dir::Worker;

    #[test]
    fn a_pod_whose_last_events_are_left_is_abandoned_when_its_process_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner {
            namespace: "default".to_owned(),
            id: "c".to_owned(),
            bundle: dir.path().join("bundle"),
        };
        let state = StateDir::create(&dir.path().join("pods"), &owner).unwrap();
        assert_eq!(abandoned_by(&state), None, "this process works on it");
        let mut ended = StdCommand::new("sleep").arg("1000").spawn().unwrap();
        let server = PidRecord::of(ended.id()).unwrap().unwrap();
        server.write(&state.path().join("process.json")).unwrap();
        ended.kill().unwrap();
        ended.wait().unwrap();
        state.remove_guest().unwrap();
        assert_eq!(abandoned_by(&state), Some(owner.clone()));

        let mut command = Command::new("sleep");
        command.arg("1000");
        state.spawn(Worker::Cleanup, &mut command).unwrap();
        assert_eq!(abandoned_by(&state), None);
        let cleanup = state.process(Worker::Cleanup).unwrap();
        let runtime = crate::tokio_runtime().unwrap();
        let limit = std::time::Duration::from_secs(60);
        let is_ended = runtime.block_on(crate::recorded_process::kill(&cleanup, limit));
        assert!(is_ended.unwrap());
        assert_eq!(abandoned_by(&state), Some(owner));
    }
}
