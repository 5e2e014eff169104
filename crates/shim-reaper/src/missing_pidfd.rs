use crate::ReaperGauge;
use crate::kernel::{NoPidfd, ProcessTable, Target, WaitResult};
use crate::registry::{Phase, Registry};
use crate::shared::Shared;

/// Opens the pidfd of a live shim that was registered without one, and watches it.
pub(crate) fn open_missing_pidfd<K: ProcessTable>(
    shared: &Shared<K>,
    registry: &mut Registry<K::Pidfd>,
    id: u64,
) {
    if registry.cursor.pidfds_exhausted {
        return;
    }
    let Some((shim, Phase::Alive)) = registry.get(id) else {
        return;
    };
    let kernel = &shared.kernel;
    let mut state = shim.state();
    if state.is_watched {
        return;
    }
    if let Some(pidfd) = &state.pidfd {
        if kernel.watch(pidfd, id).is_err() {
            registry.cursor.pidfds_exhausted = true;
            return;
        }
        state.is_watched = true;
        drop(state);
        registry.remove_sweep_only(id);
        return;
    }
    let before = match kernel.stat(shim.pid) {
        Ok(Some(stat)) if state.is_same_process(&stat) => stat,
        Ok(_) => return,
        Err(_) => {
            registry.cursor.pidfds_exhausted = true;
            return;
        }
    };
    let pidfd = match kernel.open(shim.pid) {
        Ok(pidfd) => pidfd,
        Err(NoPidfd::NoProcess) => return,
        Err(NoPidfd::Exhausted(_) | NoPidfd::Unsupported) => {
            registry.cursor.pidfds_exhausted = true;
            return;
        }
    };
    // Compared again, because the pid may have been recycled before the pidfd was open.
    let still_same = match kernel.stat(shim.pid) {
        Ok(stat) => stat.is_some_and(|after| after.start_time == before.start_time),
        // The pidfd took the last descriptor.
        Err(_) => !matches!(
            kernel.peek(Target::Pidfd(shim.pid, &pidfd)),
            WaitResult::NotWaitable
        ),
    };
    if !still_same {
        return;
    }
    if kernel.watch(&pidfd, id).is_err() {
        registry.cursor.pidfds_exhausted = true;
        return;
    }
    state.pidfd = Some(pidfd);
    state.is_watched = true;
    drop(state);
    registry.remove_sweep_only(id);
    shared.counters.adjust(ReaperGauge::WithoutPidfd, -1);
    shared.note_pidfd_opened();
}
