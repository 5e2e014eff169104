//! Histories that the running kernel cannot be made to play.

use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::counters::Counters;
use crate::directory::News;
use crate::intake::Intake;
use crate::kernel::ProcessTable;
use crate::kernel::simulated::{Abilities, Life, Simulated};
use crate::shim::{Role, Shim};
use crate::{CollectedBy, MetricsSink};

const NEWEST: Abilities = Abilities {
    exit_info: true,
    hangup: true,
    reports: true,
};

const INTERVAL: Duration = Duration::from_millis(250);

fn core(abilities: Abilities) -> Core<Simulated> {
    Core::new(Intake::new(
        Simulated::new(abilities),
        Counters::new(MetricsSink::default()),
        CancellationToken::new(),
        INTERVAL,
        INTERVAL,
    ))
}

fn sweep(core: &Core<Simulated>) {
    let mut effects = core.effects();
    block_on(async {
        core.collect(&mut effects).await;
        core.sweep(&mut effects).await;
        core.collect(&mut effects).await;
    });
}

fn register(core: &Core<Simulated>, pid: u32, role: Role) -> Arc<Shim<usize>> {
    core.intake.register(pid, role).unwrap()
}

/// (reaped, vanished, registered)
fn counts(core: &Core<Simulated>) -> (u64, u64, u64) {
    let stats = core.intake.counters.read(true);
    (stats.reaped_total, stats.vanished_total, stats.registered)
}

fn outcome(shim: &Shim<usize>) -> Option<(Option<i32>, CollectedBy)> {
    let exit = shim.state().exit()?;
    Some((exit.code(), exit.collected_by))
}

#[test]
fn what_a_thief_took_has_no_status_on_kernels_that_do_not_keep_it() {
    let core = core(Abilities {
        exit_info: false,
        ..NEWEST
    });
    core.intake.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.intake.kernel.set(7, Life::Reaped(3));
    sweep(&core);
    assert_eq!(outcome(&shim), Some((None, CollectedBy::Owner)));
    assert_eq!(counts(&core), (0, 1, 0));
}

#[test]
fn the_status_is_awaited_while_a_thief_is_at_it() {
    for role in [Role::Owned, Role::Shared] {
        let core = core(NEWEST);
        core.intake.kernel.fork(7);
        let shim = register(&core, 7, role);
        core.intake.kernel.set(7, Life::BeingReaped(3));
        sweep(&core);
        sweep(&core);
        assert_eq!(outcome(&shim), None, "nobody can tell yet");
        core.intake.kernel.set(7, Life::Reaped(3));
        sweep(&core);
        assert_eq!(outcome(&shim), Some((Some(3), CollectedBy::Owner)));
        assert_eq!(counts(&core), (0, 1, 0));
    }
}

#[test]
fn a_thief_that_finishes_while_we_look_leaves_us_the_status() {
    let core = core(NEWEST);
    core.intake.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.intake.kernel.set(7, Life::BeingReaped(3));
    core.intake.kernel.finish_reaping_before_next_stat();
    sweep(&core);
    assert_eq!(outcome(&shim), Some((Some(3), CollectedBy::Owner)));
}

#[test]
fn a_thief_that_never_finishes_is_not_waited_for_for_ever() {
    let core = core(NEWEST);
    core.intake.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.intake.kernel.set(7, Life::BeingReaped(3));
    sweep(&core);
    core.intake.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(outcome(&shim), Some((None, CollectedBy::Owner)));
    assert_eq!(counts(&core), (0, 1, 0));
}

#[test]
fn lost_reports_are_made_good_by_the_spot_checks_of_a_few_sweeps() {
    let core = core(Abilities {
        reports: false,
        ..NEWEST
    });
    let shims: Vec<_> = (1..=100)
        .map(|i| {
            core.intake.kernel.fork(i + 1_000_000);
            register(&core, i + 1_000_000, Role::Owned)
        })
        .collect();
    sweep(&core);
    for shim in &shims {
        core.intake.kernel.set(shim.pid, Life::Zombie(1));
    }
    for _ in 0..30 {
        sweep(&core);
    }
    for shim in &shims {
        assert_eq!(outcome(shim), Some((Some(1), CollectedBy::Reaper)));
    }
    assert_eq!(counts(&core), (100, 0, 0));
}

#[test]
fn an_owners_wait_is_noticed_at_the_end_of_the_grace_without_hangups() {
    let core = core(Abilities {
        hangup: false,
        ..NEWEST
    });
    core.intake.kernel.fork(7);
    let shim = register(&core, 7, Role::Shared);
    core.intake.kernel.set(7, Life::Zombie(3));
    sweep(&core);
    assert_eq!(outcome(&shim), Some((Some(3), CollectedBy::Owner)));
    core.intake.kernel.set(7, Life::Reaped(3));
    // A stranger gets the pid meanwhile, and dies too.
    core.intake.kernel.fork(7);
    core.intake.kernel.set(7, Life::Zombie(9));
    core.intake.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(counts(&core), (0, 1, 0));
    assert!(core.intake.kernel.reaped_by_us().is_empty());
}

#[test]
fn the_code_of_a_stranger_that_we_may_not_inspect_is_known_once_it_is_reaped() {
    let core = core(NEWEST);
    core.intake.kernel.add_stranger(7, false);
    let shim = register(&core, 7, Role::Attached);
    core.intake.kernel.set(7, Life::Zombie(3));
    sweep(&core);
    assert_eq!(outcome(&shim), None);
    core.intake.kernel.set(7, Life::Reaped(3));
    sweep(&core);
    assert_eq!(outcome(&shim), Some((Some(3), CollectedBy::Observed)));
}

#[test]
fn a_stranger_that_nobody_reaps_and_we_may_not_inspect_ends_without_a_code() {
    let core = core(NEWEST);
    core.intake.kernel.add_stranger(7, false);
    let shim = register(&core, 7, Role::Attached);
    core.intake.kernel.set(7, Life::Zombie(3));
    sweep(&core);
    core.intake.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(outcome(&shim), Some((None, CollectedBy::Observed)));
    assert!(core.intake.kernel.reaped_by_us().is_empty());
}

#[test]
fn a_recycled_pid_is_a_new_process_although_the_old_entry_is_not_settled() {
    let core = core(NEWEST);
    core.intake.kernel.fork(7);
    let old = register(&core, 7, Role::Shared);
    core.intake.kernel.set(7, Life::Reaped(3));
    core.intake.kernel.fork(7);
    let new = register(&core, 7, Role::Shared);
    assert_ne!(old.id, new.id);
    assert_eq!(core.intake.directory.pids(), [7]);
    sweep(&core);
    assert_eq!(outcome(&old), Some((Some(3), CollectedBy::Owner)));
    assert_eq!(outcome(&new), None);
    assert_eq!(core.intake.directory.pids(), [7]);
    core.intake.kernel.set(7, Life::Zombie(4));
    sweep(&core);
    core.intake.kernel.pass_time(INTERVAL);
    sweep(&core);
    assert_eq!(outcome(&new), Some((Some(4), CollectedBy::Owner)));
    assert_eq!(counts(&core), (1, 1, 0));
    assert_eq!(core.intake.kernel.reaped_by_us(), [7]);
}

#[test]
fn recalling_a_shim_that_is_finished_by_now_does_not_bring_it_back() {
    let core = core(NEWEST);
    core.intake.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.intake.kernel.set(7, Life::Zombie(3));
    sweep(&core);
    assert_eq!(counts(&core), (1, 0, 0));
    core.intake.directory.lock().recall(&shim);
    sweep(&core);
    assert_eq!(counts(&core), (1, 0, 0));
}

#[test]
fn a_zombie_that_a_tracer_holds_is_looked_at_by_sweeps_only() {
    for role in [Role::Owned, Role::Shared] {
        let core = core(NEWEST);
        core.intake.kernel.fork(7);
        let shim = register(&core, 7, role);
        core.intake.kernel.set(7, Life::Traced(3));
        sweep(&core);
        assert_eq!(core.intake.kernel.reports(), 0, "its watch is at rest");
        assert_eq!(outcome(&shim), None);
        core.intake.kernel.set(7, Life::Zombie(3));
        sweep(&core);
        core.intake.kernel.pass_time(INTERVAL);
        sweep(&core);
        assert_eq!(outcome(&shim).unwrap().0, Some(3));
        assert_eq!(counts(&core), (1, 0, 0));
    }
}

#[test]
fn what_a_tracer_holds_and_another_wait_reaps_is_known_when_it_is_reaped() {
    let core = core(NEWEST);
    core.intake.kernel.fork(7);
    let shim = register(&core, 7, Role::Owned);
    core.intake.kernel.set(7, Life::Traced(3));
    sweep(&core);
    core.intake.kernel.set(7, Life::Reaped(3));
    block_on(core.collect(&mut core.effects()));
    assert_eq!(outcome(&shim), Some((Some(3), CollectedBy::Owner)));
    assert_eq!(counts(&core), (0, 1, 0));
}

#[test]
fn a_dead_member_of_a_shims_group_is_reaped_a_grace_period_after_the_shim() {
    let core = core(NEWEST);
    let kernel = &core.intake.kernel;
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
    core.intake.directory.lock().insert(&leader, News::Urgent);
    kernel.set(8, Life::Zombie(3));
    sweep(&core);
    kernel.pass_time(INTERVAL * 2);
    sweep(&core);
    assert!(kernel.reaped_by_us().is_empty(), "the leader lives");

    kernel.set(7, Life::Zombie(0));
    core.intake.directory.lock().recall(&leader);
    sweep(&core);
    kernel.pass_time(INTERVAL / 2);
    sweep(&core);
    assert_eq!(kernel.reaped_by_us(), [7], "its grace period has not ended");
    kernel.pass_time(INTERVAL / 2);
    sweep(&core);
    assert_eq!(kernel.reaped_by_us(), [7, 8]);
    assert_eq!(core.intake.counters.read(true).orphans_reaped_total, 1);
}
