//! Members that join, exit or resist at a given moment, on the simulated kernel.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::*;
use crate::kernel::simulated::{Features, Interrupts, ProcessState, Resistance, Simulated};
use crate::shim::Role;

const LEADER: u32 = 7;

const MEMBER: u32 = 8;

const TIMEOUT: Duration = Duration::from_millis(100);

/// A change to the kernel at one of its calls.
type Change = dyn Fn(&Simulated, &'static str) + Send + Sync;

struct Changes {
    kernel: Weak<Simulated>,
    change: Box<Change>,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl Interrupts for Changes {
    fn before(&self, call: &'static str) {
        (self.change)(&self.kernel.upgrade().unwrap(), call);
    }

    fn block(&self, time: Duration) {
        self.kernel.upgrade().unwrap().pass_time(time);
    }
}

struct Fixture {
    kernel: Arc<Simulated>,
    leader: Shim<<Simulated as ProcessTable>::Pidfd>,
    _changes: Arc<Changes>,
}

impl Fixture {
    /// Creates a leader, which has been reaped, and one member.
    fn new(
        features: Features,
        change: impl Fn(&Simulated, &'static str) + Send + Sync + 'static,
    ) -> Self {
        Self::with_leader(ProcessState::Reaped(0), features, change)
    }

    fn with_leader(
        leader_state: ProcessState,
        features: Features,
        change: impl Fn(&Simulated, &'static str) + Send + Sync + 'static,
    ) -> Self {
        let kernel = Arc::new(Simulated::new(features));
        for pid in [LEADER, MEMBER] {
            kernel.fork(pid);
            kernel.set_group(pid, LEADER);
        }
        let leader = Shim::new(LEADER, 1, true, Role::Owned, None, None);
        leader.state().group_pidfd = kernel.open(LEADER).ok();
        kernel.set(LEADER, leader_state);
        let changes = Arc::new(Changes {
            kernel: Arc::downgrade(&kernel),
            change: Box::new(change),
        });
        let interrupts: Weak<Changes> = Arc::downgrade(&changes);
        kernel.set_interrupts(interrupts);
        Self {
            kernel,
            leader,
            _changes: changes,
        }
    }

    fn group(&self) -> ProcessGroup<'_, Simulated> {
        ProcessGroup::new(&self.kernel, &self.leader)
    }

    fn deadline(&self) -> Instant {
        self.kernel.now() + TIMEOUT
    }
}

/// Makes the last member fork and exit at each check of a member, up to `count` times.
fn joins(count: u32) -> impl Fn(&Simulated, &'static str) + Send + Sync {
    let joined = AtomicU32::new(0);
    move |kernel, call| {
        if call == "read stat" && joined.load(Relaxed) < count {
            let pid = MEMBER + 1 + joined.fetch_add(1, Relaxed);
            kernel.fork(pid);
            kernel.set_group(pid, LEADER);
            kernel.set(pid - 1, ProcessState::Zombie(0));
            kernel.pass_time(Duration::from_millis(5));
        }
    }
}

fn running(kernel: &Simulated) -> usize {
    let processes = (0..kernel.process_count()).map(|index| kernel.process(index));
    processes
        .filter(|process| process.state.is_running())
        .count()
}

#[test]
fn members_that_join_during_a_kill_are_killed() {
    let fixture = Fixture::new(Features::LATEST, joins(5));
    fixture.group().kill(fixture.deadline()).unwrap();
    assert_eq!(fixture.kernel.process_count(), 7);
    assert_eq!(running(&fixture.kernel), 0);
}

/// Of 300 groups, every third has a member that survives its leader.
#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn processes_are_listed_once_for_all_groups() {
    for (has_members, lists) in [(true, 2), (false, 0)] {
        let kernel = Arc::new(Simulated::new(Features::LATEST));
        let listed = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&listed);
        let changes = Arc::new(Changes {
            kernel: Arc::downgrade(&kernel),
            change: Box::new(move |_, call| {
                counted.fetch_add(u32::from(call == "read /proc"), Relaxed);
            }),
        });
        let interrupts: Weak<Changes> = Arc::downgrade(&changes);
        kernel.set_interrupts(interrupts);
        let leaders = (100..400).map(|pid| {
            kernel.fork(pid);
            kernel.set_group(pid, pid);
            if has_members && pid % 3 == 0 {
                kernel.fork(1_000 + pid);
                kernel.set_group(1_000 + pid, pid);
            }
            let leader = Shim::new(pid, u64::from(pid), true, Role::Owned, None, None);
            leader.state().group_pidfd = kernel.open(pid).ok();
            kernel.set(pid, ProcessState::Reaped(0));
            Arc::new(leader)
        });
        let leaders: Vec<_> = leaders.collect();
        let deadline = kernel.now() + TIMEOUT;
        let left = crate::group::end_all(&*kernel, leaders, deadline, End::Kill);
        assert_eq!((left.len(), running(&kernel)), (0, 0));
        assert_eq!(listed.load(Relaxed), lists);
    }
}

#[test]
fn member_that_no_list_shows_is_killed() {
    let is_listed = AtomicU32::new(0);
    let fixture = Fixture::new(Features::LATEST, move |kernel, call| {
        // Another process takes the place of the one member between the list and the signal.
        if call == "pidfd_send_signal to a group" && is_listed.fetch_add(1, Relaxed) == 0 {
            kernel.set(MEMBER, ProcessState::Reaped(0));
            kernel.fork(MEMBER + 1);
            kernel.set_group(MEMBER + 1, LEADER);
        }
    });
    fixture.kernel.set(MEMBER, ProcessState::Zombie(0));
    let deadline = fixture.deadline();
    fixture.group().kill(deadline).unwrap();
    assert_eq!(running(&fixture.kernel), 0);
    assert!(fixture.group().await_empty(deadline).unwrap());
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn kill_and_wait_end_at_the_deadline_although_members_join() {
    const ENDLESS: u32 = 1_000;
    let fixture = Fixture::new(Features::LATEST, joins(ENDLESS));
    let killed = fixture.group().kill(fixture.deadline());
    assert!(matches!(killed, Err(GroupError::StillRunning { .. })));
    assert!(fixture.kernel.process_count() < ENDLESS as usize);

    let fixture = Fixture::new(Features::LATEST, joins(ENDLESS));
    let waited = fixture.group().await_empty(fixture.deadline());
    assert!(!waited.unwrap());
    assert!(fixture.kernel.process_count() < ENDLESS as usize);
}

#[test]
fn wait_ends_when_the_last_member_exits() {
    let polls = AtomicU32::new(0);
    let fixture = Fixture::new(Features::LATEST, move |kernel, call| {
        if call == "poll" && polls.fetch_add(1, Relaxed) == 3 {
            kernel.set(MEMBER, ProcessState::Zombie(0));
        }
    });
    let mut group = fixture.group();
    assert!(group.await_empty(fixture.deadline()).unwrap());
    assert_eq!(running(&fixture.kernel), 0);
}

/// A process in an uninterruptible system call outlives SIGKILL for a while.
#[test]
fn kill_waits_for_a_member_in_place_of_killing_it_again() {
    let signals = Arc::new(AtomicU32::new(0));
    let (counted, polls) = (Arc::clone(&signals), AtomicU32::new(0));
    let fixture = Fixture::new(Features::LATEST, move |kernel, call| match call {
        "pidfd_send_signal to a group" if counted.fetch_add(1, Relaxed) < 10 => {}
        "pidfd_send_signal to a group" => kernel.set(MEMBER, ProcessState::Zombie(0)),
        "poll" if polls.fetch_add(1, Relaxed) == 3 => kernel.set(MEMBER, ProcessState::Zombie(0)),
        _ => {}
    });
    let member = fixture.kernel.find(MEMBER).unwrap();
    fixture.kernel.set_resistance(member, Resistance::Sigkill);
    fixture.group().kill(fixture.deadline()).unwrap();
    assert_eq!(running(&fixture.kernel), 0);
    // Each is preceded by a check. The second shows that none is left.
    assert_eq!(signals.load(Relaxed), 2 * 2);
}

#[test]
fn member_that_does_not_exit_is_named_at_the_deadline() {
    for pidfds in [true, false] {
        let features = Features {
            pidfds,
            ..Features::LATEST
        };
        // Its number identifies the group of a leader that has not been reaped.
        let fixture = Fixture::with_leader(ProcessState::Zombie(0), features, |_, _| {});
        let member = fixture.kernel.find(MEMBER).unwrap();
        fixture.kernel.set_resistance(member, Resistance::Sigkill);
        let leader = fixture.kernel.stat(LEADER).unwrap().unwrap();
        fixture.leader.state().start_time = Some(leader.start_time);
        let deadline = fixture.deadline();
        let mut group = fixture.group();
        assert!(!group.await_empty(deadline).unwrap());
        assert!(fixture.kernel.now() >= deadline);
        let killed = group.kill(fixture.deadline());
        assert!(matches!(
            killed,
            Err(GroupError::StillRunning { pid: MEMBER })
        ));
    }
}

#[test]
fn zombie_and_another_process_with_its_pid_are_not_running() {
    let fixture = Fixture::new(Features::LATEST, |_, _| {});
    let member = Member {
        pid: MEMBER,
        group: LEADER,
        start_time: 1,
    };
    assert!(fixture.group().is_running(member));
    fixture.kernel.set(MEMBER, ProcessState::Zombie(0));
    assert!(!fixture.group().is_running(member));
    fixture.kernel.set(MEMBER, ProcessState::Reaped(0));
    fixture.kernel.fork(MEMBER);
    assert!(!fixture.group().is_running(member));
}

#[test]
fn list_of_members_is_retried_until_the_deadline() {
    let fixture = Fixture::new(Features::LATEST, |_, _| {});
    fixture.kernel.limit_descriptors(0);
    let deadline = fixture.deadline();
    let killed = fixture.group().kill(deadline);
    assert!(matches!(killed, Err(GroupError::Io { .. })));
    assert_eq!(fixture.kernel.now(), deadline);
    let calls = AtomicU32::new(0);
    let fixture = Fixture::new(Features::LATEST, move |kernel, call| {
        if call == "sleep" && calls.fetch_add(1, Relaxed) == 2 {
            kernel.limit_descriptors(8);
        }
    });
    fixture.kernel.limit_descriptors(0);
    fixture.group().kill(fixture.deadline()).unwrap();
    assert_eq!(running(&fixture.kernel), 0);
}

#[test]
fn member_that_exits_before_its_own_signal_is_not_an_error() {
    let fixture = Fixture::new(Features::LATEST, |kernel, call| {
        if call == "pidfd_send_signal" {
            kernel.set(MEMBER, ProcessState::Reaped(0));
        }
    });
    let member = fixture.kernel.find(MEMBER).unwrap();
    fixture.kernel.set_resistance(member, Resistance::Sigkill);
    fixture.group().kill(fixture.deadline()).unwrap();
}

/// Before Linux 6.9, the number of the group is used while the leader has not been reaped.
#[test]
fn group_is_signalled_by_its_number_until_its_leader_is_reaped() {
    let features = Features {
        hangup: false,
        ..Features::LATEST
    };
    let kernel = Simulated::new(features);
    for pid in [LEADER, MEMBER] {
        kernel.fork(pid);
        kernel.set_group(pid, LEADER);
    }
    let leader = Shim::new(LEADER, 1, true, Role::Owned, kernel.open(LEADER).ok(), None);
    let group = ProcessGroup::new(&kernel, &leader);
    group.signal(Signal::SIGCONT).unwrap();
    kernel.set(LEADER, ProcessState::Zombie(0));
    group.signal(Signal::SIGCONT).unwrap();
    kernel.set(LEADER, ProcessState::Reaped(0));
    let sent = group.signal(Signal::SIGKILL);
    assert!(matches!(
        sent,
        Err(GroupError::Unidentified { pid: LEADER })
    ));
    assert_eq!(running(&kernel), 1);
    kernel.set(MEMBER, ProcessState::Reaped(0));
    let sent = group.signal(Signal::SIGKILL);
    assert!(matches!(sent, Err(GroupError::Empty { pid: LEADER })));
}
