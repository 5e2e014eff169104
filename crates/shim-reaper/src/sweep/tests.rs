//! Event orders that a real kernel does not produce on demand.

mod interrupts;
mod orphaned_groups;
mod tracers;

use std::sync::Arc;

use futures::executor::block_on;

use crate::ReapedBy;
use crate::core::Core;
use crate::directory::Check;
use crate::kernel::ProcessTable;
use crate::kernel::simulated::{Failure, Features, ProcessState, Simulated};
use crate::outbox::Outbox;
use crate::shim::{Role, Shim};
use crate::simulation::fixture::{INTERVAL, LATEST, core, counts, exit_of, register, sweep};

/// Returns (reaped, by the owner, observed, foreign waits, unknown).
fn reasons(core: &Core<Simulated>) -> (u64, u64, u64, u64, u64) {
    let stats = core.shared.counters.snapshot(true);
    (
        stats.reaped_total,
        stats.owner_reaped_total,
        stats.observed_total,
        stats.foreign_waits_total,
        stats.unknown_total,
    )
}

#[test]
fn foreign_wait_leaves_no_status_on_kernels_that_do_not_keep_it() {
    let core = core(Features {
        exit_info: false,
        ..LATEST
    });
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.shared.kernel.set(7, ProcessState::Reaped(3));
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((None, ReapedBy::ForeignWait)));
    assert_eq!(counts(&core), (0, 1, 0));
}

#[test]
fn status_is_awaited_while_a_foreign_wait_is_in_progress() {
    for (role, reaped_by) in [
        (Role::Owned, ReapedBy::ForeignWait),
        (Role::Shared, ReapedBy::Owner),
    ] {
        let core = core(LATEST);
        core.shared.kernel.fork(7);
        let shim = register(&core, 7, role);
        core.shared.kernel.set(7, ProcessState::BeingReaped(3));
        sweep(&core);
        sweep(&core);
        assert_eq!(
            exit_of(&shim),
            None,
            "the kernel has not published the status"
        );
        core.shared.kernel.set(7, ProcessState::Reaped(3));
        sweep(&core);
        assert_eq!(exit_of(&shim), Some((Some(3), reaped_by)));
        assert_eq!(counts(&core), (0, 1, 0));
    }
}

#[test]
fn foreign_wait_that_completes_during_a_check_yields_the_status() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.shared.kernel.set(7, ProcessState::BeingReaped(3));
    core.shared.kernel.finish_reaping_before_next_poll();
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((Some(3), ReapedBy::ForeignWait)));
}

#[test]
fn foreign_wait_that_never_completes_is_awaited_for_one_grace_period() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.shared.kernel.set(7, ProcessState::BeingReaped(3));
    sweep(&core);
    core.shared.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((None, ReapedBy::ForeignWait)));
    assert_eq!(counts(&core), (0, 1, 0));
}

#[test]
fn spot_checks_find_exits_whose_events_were_lost() {
    let core = core(Features {
        events: false,
        ..LATEST
    });
    let shims: Vec<_> = (1..=100)
        .map(|i| {
            core.shared.kernel.fork(i + 1_000_000);
            register(&core, i + 1_000_000, Role::Owned)
        })
        .collect();
    sweep(&core);
    for shim in &shims {
        core.shared.kernel.set(shim.pid, ProcessState::Zombie(1));
    }
    for _ in 0..30 {
        sweep(&core);
    }
    for shim in &shims {
        assert_eq!(exit_of(shim), Some((Some(1), ReapedBy::Reaper)));
    }
    assert_eq!(counts(&core), (100, 0, 0));
}

#[test]
fn owners_wait_is_noticed_at_the_end_of_the_grace_period_without_hangups() {
    let core = core(Features {
        hangup: false,
        ..LATEST
    });
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Shared);
    core.shared.kernel.set(7, ProcessState::Zombie(3));
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((Some(3), ReapedBy::Owner)));
    core.shared.kernel.set(7, ProcessState::Reaped(3));
    // Another child gets the recycled pid, and dies too.
    core.shared.kernel.fork(7);
    core.shared.kernel.set(7, ProcessState::Zombie(9));
    core.shared.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(counts(&core), (0, 1, 0));
    assert!(core.shared.kernel.reaped_by_reaper().is_empty());
}

#[test]
fn exit_code_of_an_uninspectable_attached_process_is_known_once_it_is_reaped() {
    let core = core(LATEST);
    core.shared.kernel.add_foreign(7, false);
    let shim = register(&core, 7, Role::Attached);
    core.shared.kernel.set(7, ProcessState::Zombie(3));
    sweep(&core);
    assert_eq!(exit_of(&shim), None);
    core.shared.kernel.set(7, ProcessState::Reaped(3));
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((Some(3), ReapedBy::Observed)));
}

#[test]
fn unreaped_uninspectable_attached_process_ends_without_a_code() {
    let core = core(LATEST);
    core.shared.kernel.add_foreign(7, false);
    let shim = register(&core, 7, Role::Attached);
    core.shared.kernel.set(7, ProcessState::Zombie(3));
    sweep(&core);
    core.shared.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((None, ReapedBy::Observed)));
    assert!(core.shared.kernel.reaped_by_reaper().is_empty());
}

#[test]
fn recycled_pid_is_a_new_process_while_the_old_entry_is_unfinished() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    let old = register(&core, 7, Role::Shared);
    core.shared.kernel.set(7, ProcessState::Reaped(3));
    core.shared.kernel.fork(7);
    let new = register(&core, 7, Role::Shared);
    assert_ne!(old.id, new.id);
    assert_eq!(core.shared.directory.pids(), [7]);
    sweep(&core);
    assert_eq!(exit_of(&old), Some((Some(3), ReapedBy::Owner)));
    assert_eq!(exit_of(&new), None);
    assert_eq!(core.shared.directory.pids(), [7]);
    core.shared.kernel.set(7, ProcessState::Zombie(4));
    sweep(&core);
    core.shared.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(exit_of(&new), Some((Some(4), ReapedBy::Owner)));
    assert_eq!(counts(&core), (1, 1, 0));
    assert_eq!(core.shared.kernel.reaped_by_reaper(), [7]);
}

#[test]
fn repeated_check_of_a_finished_shim_does_not_bring_it_back() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.shared.kernel.set(7, ProcessState::Zombie(3));
    sweep(&core);
    assert_eq!(counts(&core), (1, 0, 0));
    core.shared.directory.lock().request_check(&shim);
    sweep(&core);
    assert_eq!(counts(&core), (1, 0, 0));
}

#[test]
fn exits_are_counted_by_who_reaped_them() {
    for hangup in [true, false] {
        let core = core(Features { hangup, ..LATEST });
        let kernel = &core.shared.kernel;
        for pid in 1_000_001..=1_000_003 {
            kernel.fork(pid);
        }
        kernel.add_foreign(1_000_004, true);
        kernel.add_foreign(1_000_005, true);
        register(&core, 1_000_001, Role::Owned);
        register(&core, 1_000_002, Role::Shared);
        register(&core, 1_000_003, Role::Owned);
        register(&core, 1_000_004, Role::Attached);
        // Not a child, and no process.
        register(&core, 1_000_005, Role::Shared);
        register(&core, 1_000_006, Role::Shared);
        register(&core, 1_000_007, Role::Attached);
        kernel.set(1_000_001, ProcessState::Zombie(0));
        for pid in 1_000_002..=1_000_004 {
            kernel.set(pid, ProcessState::Reaped(0));
        }
        for _ in 0..2 {
            sweep(&core);
            kernel.pass_time(INTERVAL);
        }
        assert_eq!(reasons(&core), (1, 1, 1, 1, 3));
        assert_eq!(counts(&core), (1, 6, 0));
    }
}

#[test]
fn dead_group_member_is_reaped_a_grace_period_after_its_leader() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    for pid in [7, 8] {
        kernel.fork(pid);
        kernel.set_group(pid, 7);
    }
    let leader = Arc::new(Shim::new(
        7,
        1_000,
        true,
        Role::Owned,
        kernel.open(7).ok(),
        None,
    ));
    core.shared.directory.lock().insert(&leader, Check::Now);
    kernel.set(8, ProcessState::Zombie(3));
    sweep(&core);
    kernel.pass_time(INTERVAL * 2);
    sweep(&core);
    assert!(
        kernel.reaped_by_reaper().is_empty(),
        "the leader is running"
    );

    kernel.set(7, ProcessState::Zombie(0));
    core.shared.directory.lock().request_check(&leader);
    sweep(&core);
    kernel.pass_time(INTERVAL / 2);
    sweep(&core);
    assert_eq!(
        kernel.reaped_by_reaper(),
        [7],
        "its grace period has not ended"
    );
    kernel.pass_time(INTERVAL / 2);
    sweep(&core);
    assert_eq!(kernel.reaped_by_reaper(), [7, 8]);
    assert_eq!(core.shared.counters.snapshot(true).orphans_reaped_total, 1);
}

#[test]
fn child_that_its_owner_gives_up_in_the_grace_period_is_reaped_at_once() {
    let core = core(LATEST);
    assert!(core.is_idle());
    core.shared.kernel.fork(7);
    let shared = register(&core, 7, Role::Shared);
    core.shared.kernel.set(7, ProcessState::Zombie(3));
    sweep(&core);
    assert!(core.shared.kernel.reaped_by_reaper().is_empty());
    assert!(!core.is_idle());
    let owned = register(&core, 7, Role::Owned);
    assert!(Arc::ptr_eq(&shared, &owned));
    block_on(core.reap_ready(&mut Outbox::new()));
    assert_eq!(core.shared.kernel.reaped_by_reaper(), [7]);
    assert!(core.is_idle());
}

#[test]
fn pidfd_is_not_opened_for_another_process_with_the_pid() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    kernel.fork(7);
    kernel.fail_next(Failure::Open);
    let shim = register(&core, 7, Role::Owned);
    kernel.set(7, ProcessState::Reaped(3));
    kernel.fork(7);
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((None, ReapedBy::ForeignWait)));
}

#[test]
fn pidfd_is_kept_although_its_watch_fails() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    kernel.fork(7);
    kernel.fail_next(Failure::Watch);
    let shim = register(&core, 7, Role::Owned);
    assert_eq!(core.shared.counters.snapshot(true).without_pidfd, 0);
    kernel.set(7, ProcessState::Reaped(3));
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((Some(3), ReapedBy::ForeignWait)));
}

#[test]
fn watch_that_failed_is_added_by_a_sweep() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    kernel.fork(7);
    kernel.fail_next(Failure::Watch);
    register(&core, 7, Role::Owned);
    assert_eq!(kernel.watch_count(), 0);
    kernel.fail_next(Failure::Watch);
    sweep(&core);
    assert_eq!(kernel.watch_count(), 0);
    sweep(&core);
    assert_eq!(kernel.watch_count(), 1);
    kernel.set(7, ProcessState::Zombie(3));
    block_on(core.reap_ready(&mut Outbox::new()));
    assert_eq!(kernel.reaped_by_reaper(), [7]);
}

#[test]
fn last_descriptor_is_used_for_a_missing_pidfd() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    kernel.fork(8);
    // Opens the epoll.
    register(&core, 8, Role::Owned);
    kernel.fork(7);
    kernel.limit_descriptors(0);
    register(&core, 7, Role::Owned);
    let without_pidfd = || core.shared.counters.snapshot(true).without_pidfd;
    sweep(&core);
    assert_eq!(without_pidfd(), 1);
    kernel.limit_descriptors(1);
    sweep(&core);
    assert_eq!(without_pidfd(), 0);
    assert_eq!(counts(&core), (0, 0, 2));
}

#[test]
fn orphan_that_cannot_be_reaped_without_descriptors_is_reaped_by_the_next_sweep() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    for pid in [7, 8] {
        kernel.fork(pid);
        kernel.set_group(pid, 7);
    }
    let pidfd = kernel.open(7).ok();
    let leader = Arc::new(Shim::new(7, 1_000, true, Role::Owned, pidfd, None));
    core.shared.directory.lock().insert(&leader, Check::Now);
    for pid in [7, 8] {
        kernel.set(pid, ProcessState::Zombie(0));
    }
    sweep(&core);
    kernel.pass_time(INTERVAL);
    // For the pidfd, which leaves none to read procfs.
    kernel.limit_descriptors(1);
    sweep(&core);
    assert_eq!(kernel.reaped_by_reaper(), [7]);
    kernel.limit_descriptors(2);
    sweep(&core);
    assert_eq!(kernel.reaped_by_reaper(), [7, 8]);
}
