//! Histories that the simulation has found, as tests.

use futures::executor::block_on;
use nix::libc;

use crate::directory::Check;
use crate::kernel::ProcessTable;
use crate::kernel::simulated::{Failure, Features, Parent, ProcessState};
use crate::outbox::Outbox;
use crate::shim::{Groups, Role};
use crate::simulation::fixture::{INTERVAL, LATEST, core, counts, exit_of, register, sweep};
use crate::{ReapedBy, Signal};

#[test]
fn final_drain_reaps_a_zombie_whose_event_was_lost() {
    let core = core(Features {
        events: false,
        ..LATEST
    });
    for role in [Role::Owned, Role::Shared] {
        let pid = 1_000_000 + role as u32;
        core.shared.kernel.fork(pid);
        let shim = register(&core, pid, role);
        block_on(core.reap_ready(&mut Outbox::new()));
        core.shared.kernel.set(pid, ProcessState::Zombie(3));
        assert_eq!(exit_of(&shim), None);
    }
    let report = core.try_close().unwrap();
    assert_eq!((report.drained, report.still_running), (2, Vec::new()));
    assert_eq!(counts(&core), (2, 0, 0));
}

/// A shim's descendant is registered, and becomes a child of this process when the shim ends.
#[test]
fn orphan_that_a_tracer_holds_gets_its_grace_period_when_the_tracer_has_waited() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    let parent = kernel.fork(7);
    let child = kernel.add(8, Parent::Process(parent), None);
    kernel.set(8, ProcessState::Traced(3));
    register(&core, 8, Role::Shared);
    sweep(&core);
    kernel.set(7, ProcessState::Reaped(0));
    kernel.pass_time(INTERVAL);
    sweep(&core);
    kernel.set(8, ProcessState::Zombie(3));
    for _ in 0..2 {
        sweep(&core);
        kernel.pass_time(INTERVAL);
    }
    sweep(&core);
    assert!(kernel.process(child).state.is_reaped());
    assert_eq!(counts(&core), (1, 0, 0));
}

#[test]
fn registration_of_no_process_is_not_that_of_a_new_process_with_its_pid() {
    for features in [
        LATEST,
        Features {
            pidfds: false,
            ..LATEST
        },
    ] {
        let core = core(features);
        let old = register(&core, 1_000_007, Role::Shared);
        let process = core.shared.kernel.fork(1_000_007);
        let error = old.signal(&core.shared.kernel, Signal::SIGKILL);
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(core.shared.kernel.process(process).state.is_running());

        let new = register(&core, 1_000_007, Role::Shared);
        assert_ne!(old.id, new.id);
        sweep(&core);
        assert_eq!(exit_of(&old), Some((None, ReapedBy::Owner)));
        assert_eq!(exit_of(&new), None);
    }
}

#[test]
fn process_that_is_reaped_before_its_watch_fails_keeps_its_identity() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    kernel.fork(7);
    let pidfd = Ok(kernel.open_now(7).unwrap());
    kernel.set(7, ProcessState::Reaped(3));
    kernel.fork(7);
    kernel.fail_next(Failure::Watch);
    let insert = || {
        core.shared
            .insert(7, Role::Owned, Groups::default(), pidfd, Check::OnEvent)
    };
    let shim = insert().unwrap();
    sweep(&core);
    assert_eq!(exit_of(&shim), Some((Some(3), ReapedBy::ForeignWait)));
}

#[test]
fn attached_process_that_procfs_cannot_show_is_not_taken_for_dead() {
    let core = core(LATEST);
    core.shared.kernel.add_foreign(7, true);
    let shim = register(&core, 7, Role::Attached);
    core.shared.kernel.limit_descriptors(0);
    core.shared.directory.lock().request_check(&shim);
    sweep(&core);
    core.shared.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(exit_of(&shim), None);
}

#[test]
fn handle_without_an_identity_signals_no_process_after_a_shutdown() {
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    kernel.fork(7);
    kernel.limit_descriptors(0);
    let shim = core
        .shared
        .insert(
            7,
            Role::Owned,
            Groups::default(),
            kernel.open(7),
            Check::OnEvent,
        )
        .unwrap();
    shim.signal(kernel, Signal::SIGCONT).unwrap();
    core.try_close().unwrap();
    kernel.set(7, ProcessState::Reaped(0));
    let process = kernel.fork(7);
    assert!(shim.signal(kernel, Signal::SIGKILL).is_err());
    assert!(kernel.process(process).state.is_running());
}

#[test]
fn handle_signals_no_process_after_a_shutdown_while_no_descriptor_is_free() {
    let core = core(Features {
        pidfds: false,
        ..LATEST
    });
    let kernel = &core.shared.kernel;
    kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.try_close().unwrap();
    kernel.set(7, ProcessState::Reaped(0));
    let process = kernel.fork(7);
    kernel.limit_descriptors(0);
    assert!(shim.signal(kernel, Signal::SIGKILL).is_err());
    assert!(kernel.process(process).state.is_running());
}
