//! Groups whose leader has ended.

use std::sync::Weak;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::*;
use crate::kernel::simulated::Interrupts;

/// Counts the checks whether a group exists.
#[derive(Debug, Default)]
struct CountChecks(AtomicU32);

impl Interrupts for CountChecks {
    fn before(&self, call: &'static str) {
        self.0.fetch_add(u32::from(call == "killpg 0"), Relaxed);
    }
}

#[test]
fn group_is_forgotten_if_another_process_adopts_its_orphans() {
    for subreaper in [true, false] {
        let core = core(Features {
            subreaper,
            ..LATEST
        });
        let kernel = &core.shared.kernel;
        let checks = Arc::new(CountChecks::default());
        let interrupts: Weak<CountChecks> = Arc::downgrade(&checks);
        kernel.set_interrupts(interrupts);
        for pid in [7, 8] {
            kernel.fork(pid);
            kernel.set_group(pid, 7);
        }
        let pidfd = kernel.open(7).ok();
        let leader = Arc::new(Shim::new(7, 1_000, true, Role::Owned, pidfd, None));
        core.shared.directory.lock().insert(&leader, Check::Now);
        kernel.set(7, ProcessState::Zombie(0));
        sweep(&core);
        assert_eq!(kernel.reaped_by_reaper(), [7]);
        assert_eq!(checks.0.load(Relaxed) > 0, subreaper);
        assert_eq!(core.is_idle(), !subreaper);
    }
}

/// Makes the process 8 exit at the end of a search for orphans, which takes an interval.
#[derive(Debug)]
struct SlowSearch {
    core: Weak<Core<Simulated>>,
    searches: AtomicU32,
}

impl Interrupts for SlowSearch {
    fn before(&self, call: &'static str) {
        if call == "read children" && self.searches.fetch_add(1, Relaxed) == 0 {
            let core = self.core.upgrade().unwrap();
            core.shared.kernel.pass_time(INTERVAL);
            core.shared.kernel.set(8, ProcessState::Zombie(0));
        }
    }
}

#[test]
fn grace_period_of_an_orphan_begins_after_the_search_that_finds_it() {
    let core = Arc::new(core(Features {
        subreaper: true,
        ..LATEST
    }));
    let kernel = &core.shared.kernel;
    let search = Arc::new(SlowSearch {
        core: Arc::downgrade(&core),
        searches: AtomicU32::new(0),
    });
    let interrupts: Weak<SlowSearch> = Arc::downgrade(&search);
    kernel.set_interrupts(interrupts);
    for pid in [7, 8] {
        kernel.fork(pid);
        kernel.set_group(pid, 7);
    }
    let pidfd = kernel.open(7).ok();
    let leader = Arc::new(Shim::new(7, 1_000, true, Role::Owned, pidfd, None));
    core.shared.directory.lock().insert(&leader, Check::Now);
    kernel.set(7, ProcessState::Zombie(0));
    sweep(&core);
    kernel.pass_time(INTERVAL - Duration::from_millis(1));
    sweep(&core);
    assert_eq!(kernel.reaped_by_reaper(), [7]);
    kernel.pass_time(Duration::from_millis(1));
    sweep(&core);
    assert_eq!(kernel.reaped_by_reaper(), [7, 8]);
}
