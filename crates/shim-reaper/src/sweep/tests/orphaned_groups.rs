//! Groups whose leader has ended.

use std::sync::Weak;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

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
