use crate::ReaperCounter;
use crate::kernel::{Orphans, ProcessTable};
use crate::registry::Registry;
use crate::shared::Shared;

/// Reaps dead orphans: all, or those in the groups of ended shims. They get a grace period first,
/// because they may be children that the embedder forked and waits for. Skips registered
/// processes.
pub(crate) fn reap_orphans<K: ProcessTable>(shared: &Shared<K>, registry: &mut Registry<K::Pidfd>) {
    if !shared.reap_all_orphans && registry.orphaned_groups.is_empty() {
        registry.forget_orphans();
        return;
    }
    let kernel = &shared.kernel;
    if !kernel.adopts_orphans() {
        registry.orphaned_groups.clear();
        registry.forget_orphans();
        return;
    }
    // Checked first: the number may already belong to another group.
    registry
        .orphaned_groups
        .retain(|pgid| kernel.group_exists(*pgid));
    let among = if shared.reap_all_orphans {
        Orphans::All
    } else if registry.orphaned_groups.is_empty() {
        registry.forget_orphans();
        return;
    } else {
        Orphans::InGroups(&registry.orphaned_groups)
    };
    let found = kernel.dead_orphans(among, &mut registry.forked);
    // After the search, during which they may have exited.
    let now = kernel.now();
    let deadline = now + shared.owner_grace.max(shared.sweep_interval);
    for orphan in found {
        registry.orphans.entry(orphan).or_insert(deadline);
    }
    registry.orphans.retain(|orphan, deadline| {
        if *deadline > now {
            return true;
        }
        // Locked during the reap, so that it is not registered in between.
        let entries = shared.directory.lock();
        if entries.get(orphan.pid).is_some() {
            return false;
        }
        if kernel.reap_orphan(*orphan) {
            drop(entries);
            shared.counters.increment(ReaperCounter::OrphansReaped);
            return false;
        }
        // Tried again if descriptors are exhausted.
        kernel.stat(orphan.pid).map_or(true, |stat| {
            stat.is_some_and(|stat| stat.start_time == orphan.start_time)
        })
    });
}
