//! What a registration does beside adding a shim.

use super::*;
use crate::kernel::simulated::Features;
use crate::simulation::fixture::{LATEST, core, register};

#[test]
fn repeated_registration_requests_no_check() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Shared);
    core.shared.directory.take_pending();
    assert!(Arc::ptr_eq(&shim, &register(&core, 7, Role::Shared)));
    assert!(core.shared.directory.take_pending().is_empty());
    register(&core, 7, Role::Owned);
    assert_eq!(core.shared.directory.take_pending().len(), 1);
}

#[test]
fn attached_process_is_checked_by_its_watch_only() {
    let core = core(LATEST);
    core.shared.kernel.add_foreign(7, true);
    register(&core, 7, Role::Attached);
    let pending = core.shared.directory.take_pending();
    assert_eq!(pending.first().unwrap().check, Check::OnEvent);
}

#[test]
fn processes_without_an_identity_are_the_same_unless_the_reaper_owns_the_new_one() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    core.shared.kernel.limit_descriptors(0);
    let shim = register(&core, 7, Role::Shared);
    assert!(Arc::ptr_eq(&shim, &register(&core, 7, Role::Shared)));
    assert!(!Arc::ptr_eq(&shim, &register(&core, 7, Role::Owned)));
}

#[test]
fn missing_process_shows_a_foreign_wait_only_if_the_reaper_owns_it() {
    let core = core(Features {
        pidfds: false,
        ..LATEST
    });
    let is_seen = || core.shared.foreign_wait_seen.load(Ordering::Relaxed);
    register(&core, 7, Role::Shared);
    register(&core, 8, Role::Attached);
    assert!(!is_seen());
    register(&core, 9, Role::Owned);
    assert!(is_seen());
}

/// Without a pidfd, pid and start time identify a process, and the pid can be recycled within a tick.
#[test]
fn spawned_child_is_new_although_an_earlier_one_had_its_pid_and_start_time() {
    let core = core(Features {
        pidfds: false,
        ..LATEST
    });
    core.shared.kernel.fork(7);
    let earlier = register(&core, 7, Role::Shared);
    let (groups, pidfd) = (Groups::default(), core.shared.kernel.open(7));
    let spawned =
        core.shared
            .insert_child(7, Role::Owned, groups, pidfd, Check::OnEvent, &mut Spawner);
    assert!(!Arc::ptr_eq(&earlier, &spawned.unwrap()));
}
