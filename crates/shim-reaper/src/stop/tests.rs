use std::sync::Weak;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;
use crate::directory::Check;
use crate::kernel::simulated::Interrupts;
use crate::shim::{Groups, Role};
use crate::simulation::fixture::{LATEST, core};

/// Counts the lists of all processes.
#[derive(Debug, Default)]
struct CountLists(AtomicU32);

impl Interrupts for CountLists {
    fn before(&self, call: &'static str) {
        self.0.fetch_add(u32::from(call == "read /proc"), Relaxed);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn many_shims_with_groups_are_stopped_with_one_list_of_processes() {
    const SHIMS: u32 = 300;
    let core = core(LATEST);
    let kernel = &core.shared.kernel;
    let lists = Arc::new(CountLists::default());
    let interrupts: Weak<CountLists> = Arc::downgrade(&lists);
    kernel.set_interrupts(interrupts);
    for pid in 100..100 + SHIMS {
        kernel.fork(pid);
        kernel.set_group(pid, pid);
        let groups = Groups {
            leads: true,
            control: None,
        };
        let pidfd = kernel.open(pid);
        let shim = core
            .shared
            .insert(pid, Role::Owned, groups, pidfd, Check::OnEvent);
        assert!(shim.is_ok());
    }
    let report = stop_all(&core, Duration::from_secs(10));
    assert_eq!((report.stopped, report.killed.len()), (u64::from(SHIMS), 0));
    // The worker does not run, so that the leaders are still members of their groups.
    assert_eq!(lists.0.load(Relaxed), 1);
}
