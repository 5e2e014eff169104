//! Each decision by itself, with and without a pidfd.

use std::time::Duration;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::*;
use crate::kernel::simulated::{Descriptor, Features, ProcessState, Simulated};
use crate::shim::Shim;
use crate::tokio_child::TokioChild;

const GRACE: Duration = Duration::from_millis(250);

/// A check of pid 7, which the simulated kernel has.
struct Check<'a> {
    kernel: &'a Simulated,
    role: Role,
    has_pidfd: bool,
    start_time: Option<u64>,
    phase: Phase,
    trigger: Trigger,
    owner_grace: Duration,
    compare_identity: bool,
    tokio_child: Option<TokioChild>,
}

impl<'a> Check<'a> {
    /// A check of the first process, after an event.
    fn new(kernel: &'a Simulated, role: Role) -> Self {
        Self {
            kernel,
            role,
            has_pidfd: true,
            start_time: None,
            phase: Phase::Alive,
            trigger: Trigger::Event,
            owner_grace: GRACE,
            compare_identity: false,
            tokio_child: None,
        }
    }

    fn by_pid(kernel: &'a Simulated, role: Role) -> Self {
        Self {
            has_pidfd: false,
            start_time: Some(0),
            ..Self::new(kernel, role)
        }
    }

    fn verdict(self) -> Verdict {
        let kernel = self.kernel;
        self.with_case(|case| judge(kernel, case))
    }

    fn with_case<T>(self, run: impl FnOnce(&Case<'_, Descriptor>) -> T) -> T {
        let pidfd = self.kernel.open(7).ok().filter(|_| self.has_pidfd);
        let shim = Shim::new(7, 1, false, self.role, pidfd, self.start_time);
        let mut state = shim.state();
        state.tokio_child = self.tokio_child;
        let case = Case {
            pid: 7,
            state: &state,
            phase: self.phase,
            trigger: self.trigger,
            owner_grace: self.owner_grace,
            compare_identity: self.compare_identity,
        };
        run(&case)
    }
}

fn kernel() -> Simulated {
    Simulated::new(Features::LATEST)
}

fn kernel_with_child(state: ProcessState) -> Simulated {
    let kernel = kernel();
    kernel.fork(7);
    kernel.set(7, state);
    kernel
}

fn kernel_with_foreign_process() -> Simulated {
    let kernel = kernel();
    kernel.add_foreign(7, true);
    kernel
}

/// Pid 7 is that of a second process; the first was reaped.
fn kernel_with_recycled_pid(state: ProcessState) -> Simulated {
    let kernel = kernel_with_child(ProcessState::Reaped(0));
    kernel.fork(7);
    kernel.set(7, state);
    kernel
}

fn is_vanished(verdict: &Verdict, by: ReapedBy) -> bool {
    matches!(verdict, Verdict::Vanished(None, reaped_by) if *reaped_by == by)
}

#[test]
fn running_child_is_running() {
    let kernel = kernel_with_child(ProcessState::Running);
    for check in [
        Check::new(&kernel, Role::Owned),
        Check::by_pid(&kernel, Role::Owned),
        Check::new(&kernel, Role::Attached),
        Check::by_pid(&kernel, Role::Attached),
    ] {
        let verdict = check.verdict();
        let expected = matches!(
            verdict,
            Verdict::Running {
                identity_compared: false
            }
        );
        assert!(expected, "{verdict:?}");
    }
}

#[test]
fn start_time_of_a_running_child_without_a_pidfd_is_compared_in_turn() {
    let compare = |kernel: &Simulated, start_time| {
        let check = Check::by_pid(kernel, Role::Owned);
        Check {
            start_time,
            compare_identity: true,
            ..check
        }
        .verdict()
    };
    let kernel = kernel_with_recycled_pid(ProcessState::Running);
    for start_time in [Some(1), None] {
        let verdict = compare(&kernel, start_time);
        let expected = matches!(
            verdict,
            Verdict::Running {
                identity_compared: true
            }
        );
        assert!(expected, "{verdict:?}");
    }
    let verdict = compare(&kernel, Some(0));
    assert!(is_vanished(&verdict, ReapedBy::ForeignWait), "{verdict:?}");
}

#[test]
fn live_process_that_is_not_a_child_is_only_observed() {
    let kernel = kernel_with_foreign_process();
    for check in [
        Check::new(&kernel, Role::Shared),
        Check::by_pid(&kernel, Role::Shared),
    ] {
        let verdict = check.verdict();
        assert!(is_vanished(&verdict, ReapedBy::Observed), "{verdict:?}");
    }
}

#[test]
fn another_wait_has_reaped_a_child_whose_pid_another_process_has() {
    let kernel = kernel_with_child(ProcessState::Reaped(3));
    kernel.add_foreign(7, true);
    let verdict = Check::by_pid(&kernel, Role::Shared).verdict();
    assert!(is_vanished(&verdict, ReapedBy::Owner), "{verdict:?}");
}

#[test]
fn another_wait_has_reaped_a_child_that_was_dead_before() {
    // Without a start time the process with this pid looks like the child.
    let kernel = kernel_with_foreign_process();
    for has_pidfd in [false, true] {
        let check = Check::new(&kernel, Role::Shared);
        let verdict = Check {
            has_pidfd,
            phase: Phase::Deferred,
            trigger: Trigger::GraceExpired,
            ..check
        }
        .verdict();
        assert!(is_vanished(&verdict, ReapedBy::Owner), "{verdict:?}");
    }
}

#[test]
fn dead_process_that_cannot_be_waited_for_is_not_observed() {
    let kernel = kernel_with_foreign_process();
    kernel.set(7, ProcessState::Zombie(3));
    let verdict = Check::by_pid(&kernel, Role::Shared).verdict();
    assert!(is_vanished(&verdict, ReapedBy::Owner), "{verdict:?}");
}

#[test]
fn zombie_with_a_recycled_pid_is_never_reaped() {
    let kernel = kernel_with_recycled_pid(ProcessState::Zombie(3));
    let verdict = Check::by_pid(&kernel, Role::Owned).verdict();
    assert!(is_vanished(&verdict, ReapedBy::ForeignWait), "{verdict:?}");
    assert!(kernel.reaped_by_reaper().is_empty());
}

#[test]
fn zombie_is_left_to_its_owner_for_the_grace_period() {
    for has_pidfd in [true, false] {
        let verdict_of = |role, trigger, owner_grace| {
            let kernel = kernel_with_child(ProcessState::Zombie(3));
            let check = Check {
                has_pidfd,
                trigger,
                owner_grace,
                ..Check::by_pid(&kernel, role)
            };
            (check.verdict(), kernel.reaped_by_reaper())
        };
        for trigger in [Trigger::Event, Trigger::Sweep] {
            let (verdict, reaped) = verdict_of(Role::Shared, trigger, GRACE);
            assert!(
                matches!(verdict, Verdict::DeferToOwner(Some(_))),
                "{verdict:?}"
            );
            assert!(reaped.is_empty());
        }
        for (role, trigger, owner_grace) in [
            (Role::Owned, Trigger::Event, GRACE),
            (Role::Shared, Trigger::GraceExpired, GRACE),
            (Role::Shared, Trigger::Event, Duration::ZERO),
        ] {
            let (verdict, reaped) = verdict_of(role, trigger, owner_grace);
            assert!(matches!(verdict, Verdict::Reaped(_)), "{verdict:?}");
            assert_eq!(reaped, [7]);
        }
    }
}

#[test]
fn attached_zombie_has_ended() {
    for has_pidfd in [true, false] {
        let kernel = kernel_with_child(ProcessState::Zombie(3));
        let check = Check::by_pid(&kernel, Role::Attached);
        let verdict = Check { has_pidfd, ..check }.verdict();
        assert!(
            matches!(&verdict, Verdict::Vanished(Some(status), ReapedBy::Observed) if status.code() == Some(3)),
            "{verdict:?}"
        );
        assert!(kernel.reaped_by_reaper().is_empty());
    }
}

#[test]
fn attached_process_whose_pid_another_process_has_is_gone() {
    let kernel = kernel_with_recycled_pid(ProcessState::Running);
    let verdict = Check::by_pid(&kernel, Role::Attached).verdict();
    assert!(is_vanished(&verdict, ReapedBy::Observed), "{verdict:?}");
}

#[test]
fn foreign_wait_shows_only_for_children_that_only_the_reaper_may_wait_for() {
    let shows = |role, has_pidfd, verdict| {
        let kernel = kernel_with_child(ProcessState::Running);
        let pidfd = kernel.open(7).ok().filter(|_| has_pidfd);
        let shim = Shim::new(7, 1, false, role, pidfd, None);
        let case = Case {
            pid: 7,
            state: &shim.state(),
            phase: Phase::Alive,
            trigger: Trigger::Event,
            owner_grace: GRACE,
            compare_identity: false,
        };
        case.shows_foreign_wait(&verdict)
    };
    let vanished = || Verdict::Vanished(None, ReapedBy::ForeignWait);
    assert!(shows(Role::Owned, true, vanished()));
    assert!(shows(Role::Owned, true, Verdict::DeferToOwner(None)));
    assert!(!shows(Role::Owned, true, RUNNING));
    assert!(!shows(Role::Owned, false, vanished()));
    assert!(!shows(Role::Shared, true, vanished()));
}

#[test]
fn attached_zombie_that_procfs_cannot_show_is_checked_again_after_its_grace_period() {
    let kernel = kernel_with_foreign_process();
    kernel.set(7, ProcessState::Zombie(3));
    // For the pidfd.
    kernel.limit_descriptors(1);
    let verdict = Check::new(&kernel, Role::Attached).verdict();
    assert!(
        matches!(verdict, Verdict::DeferToOwner(None)),
        "{verdict:?}"
    );
}

#[test]
fn reason_why_a_process_was_not_reaped_depends_on_its_registration() {
    let kernel = kernel_with_child(ProcessState::Running);
    let reason = |role, phase, reaped_by| {
        let check = Check {
            phase,
            ..Check::new(&kernel, role)
        };
        check.with_case(|case| case.counter(reaped_by))
    };
    for (role, phase, reaped_by, expected) in [
        (
            Role::Owned,
            Phase::NotFound,
            ReapedBy::ForeignWait,
            ReaperCounter::ForeignWaits,
        ),
        (
            Role::Owned,
            Phase::Alive,
            ReapedBy::Observed,
            ReaperCounter::Unknown,
        ),
        (
            Role::Shared,
            Phase::Alive,
            ReapedBy::Owner,
            ReaperCounter::OwnerReaped,
        ),
        (
            Role::Shared,
            Phase::NotFound,
            ReapedBy::Owner,
            ReaperCounter::Unknown,
        ),
        (
            Role::Shared,
            Phase::Alive,
            ReapedBy::Observed,
            ReaperCounter::Unknown,
        ),
        (
            Role::Attached,
            Phase::Alive,
            ReapedBy::Observed,
            ReaperCounter::Observed,
        ),
        (
            Role::Attached,
            Phase::NotFound,
            ReapedBy::Unknown,
            ReaperCounter::Unknown,
        ),
    ] {
        assert_eq!(
            reason(role, phase, reaped_by),
            expected,
            "{role:?}, {phase:?}"
        );
    }
}

/// tokio waits for the child, and finds that other code has reaped it.
#[tokio::test]
#[cfg_attr(miri, ignore = "makes system calls")]
async fn child_of_tokio_that_a_foreign_wait_reaps_during_the_check_has_its_status() {
    for has_pidfd in [true, false] {
        let child = tokio::process::Command::new("true").spawn().unwrap();
        waitpid(Pid::from_raw(child.id().unwrap() as i32), None).unwrap();
        let kernel = kernel_with_child(ProcessState::Zombie(3));
        let check = Check {
            has_pidfd,
            tokio_child: Some(TokioChild::new(child)),
            ..Check::by_pid(&kernel, Role::Owned)
        };
        assert!(matches!(
            check.verdict(),
            Verdict::Vanished(Some(status), ReapedBy::ForeignWait) if status.code() == Some(3)
        ));
    }
}
