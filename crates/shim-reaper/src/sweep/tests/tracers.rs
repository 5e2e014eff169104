//! Zombies that a tracer holds.

use std::task::{Context, Poll, Waker};

use futures::StreamExt;

use super::*;

#[test]
fn zombie_held_by_a_tracer_is_checked_by_sweeps_only() {
    for role in [Role::Owned, Role::Shared] {
        let core = core(LATEST);
        core.shared.kernel.fork(7);
        let shim = register(&core, 7, role);
        core.shared.kernel.set(7, ProcessState::Traced(3));
        sweep(&core);
        assert_eq!(
            core.shared.kernel.pending_events(),
            0,
            "its watch reports no event"
        );
        assert_eq!(counts(&core), (0, 0, 1));
        core.shared.kernel.set(7, ProcessState::Zombie(3));
        sweep(&core);
        core.shared.kernel.pass_time(INTERVAL);
        sweep(&core);
        assert_eq!(exit_of(&shim).unwrap().0, Some(3));
        assert_eq!(counts(&core), (1, 0, 0));
    }
}

#[test]
fn handles_of_a_zombie_held_by_a_tracer_resolve_before_it_is_reaped() {
    for events in [true, false] {
        for (role, reaped_by) in [
            (Role::Owned, ReapedBy::Unknown),
            (Role::Shared, ReapedBy::Owner),
        ] {
            let core = core(Features { events, ..LATEST });
            core.shared.kernel.fork(7);
            let shim = register(&core, 7, role);
            let mut exits = core.shared.subscribers.subscribe();
            sweep(&core);
            core.shared.kernel.set(7, ProcessState::Traced(3));
            sweep(&core);
            assert_eq!(exit_of(&shim), Some((Some(3), reaped_by)));
            assert_eq!(counts(&core), (0, 0, 1));
            core.shared.kernel.set(7, ProcessState::Zombie(3));
            sweep(&core);
            core.shared.kernel.pass_time(INTERVAL);
            sweep(&core);
            assert_eq!(core.shared.kernel.reaped_by_reaper(), [7]);
            assert_eq!(counts(&core), (1, 0, 0));
            let mut next = || exits.poll_next_unpin(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(next(), Poll::Ready(Some(_))));
            assert!(next().is_pending(), "the exit is published once");
        }
    }
}

#[test]
fn status_of_an_uninspectable_zombie_held_by_a_tracer_is_known_once_it_is_reaped() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    core.shared.kernel.forbid_inspection(7);
    let shim = register(&core, 7, Role::Owned);
    core.shared.kernel.set(7, ProcessState::Traced(3));
    sweep(&core);
    assert_eq!(exit_of(&shim), None);
    core.shared.kernel.set(7, ProcessState::Zombie(3));
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((Some(3), ReapedBy::Reaper)));
    assert_eq!(counts(&core), (1, 0, 0));
}

#[test]
fn zombie_held_by_a_tracer_resolves_when_another_wait_reaps_it() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.shared.kernel.set(7, ProcessState::Traced(3));
    sweep(&core);
    core.shared.kernel.set(7, ProcessState::Reaped(3));
    block_on(core.reap_ready(&mut Outbox::new()));
    assert_eq!(exit_of(&shim), Some((Some(3), ReapedBy::Unknown)));
    assert_eq!(counts(&core), (0, 1, 0));
}

#[test]
fn final_drain_reports_a_zombie_held_by_a_tracer() {
    let core = core(LATEST);
    for pid in [9, 8, 7] {
        core.shared.kernel.fork(pid);
        register(&core, pid, Role::Owned);
    }
    core.shared.kernel.set(9, ProcessState::Traced(3));
    core.shared.kernel.set(8, ProcessState::Traced(3));
    sweep(&core);
    core.shared.kernel.set(8, ProcessState::Zombie(3));
    let report = core.try_close().unwrap();
    assert_eq!(report.drained, 1);
    assert_eq!(
        (report.still_running, report.held_by_tracer),
        (vec![7], vec![9])
    );
}
