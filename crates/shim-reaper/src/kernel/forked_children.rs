use std::collections::{HashMap, HashSet};

use super::Orphan;

/// The children that this process has certainly forked, recorded while orphans are looked for: they stay
/// known after the kernel has reparented them to the main thread.
#[derive(Debug, Default)]
pub(crate) struct ForkedChildren {
    /// By pid, when the child was seen last, in clock ticks since boot, as in the start time of a
    /// process. A process that has started later only has the same pid.
    seen_at: HashMap<u32, u64>,
}

impl ForkedChildren {
    /// Adds the children of other threads, and forgets those that are neither among them nor among the
    /// children of the main thread.
    pub(crate) fn update(&mut self, of_main_thread: &[u32], of_others: &[u32], now: u64) {
        let of_main_thread: HashSet<&u32> = of_main_thread.iter().collect();
        self.seen_at.retain(|pid, _| of_main_thread.contains(pid));
        self.seen_at.extend(of_others.iter().map(|pid| (*pid, now)));
    }

    pub(crate) fn contains(&self, child: Orphan) -> bool {
        let seen_at = self.seen_at.get(&child.pid);
        seen_at.is_some_and(|seen_at| child.start_time <= *seen_at)
    }

    pub(crate) fn clear(&mut self) {
        self.seen_at.clear();
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn len(&self) -> usize {
        self.seen_at.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_with_the_pid_of_a_forked_child_is_not_that_child() {
        let mut forked = ForkedChildren::default();
        let child = |start_time| Orphan { pid: 7, start_time };
        forked.update(&[], &[7], 100);
        assert!(forked.contains(child(90)));
        assert!(!forked.contains(child(101)));
        // The thread that forked it has exited.
        forked.update(&[7], &[], 200);
        assert!(forked.contains(child(90)));
        assert!(!forked.contains(child(101)));
        forked.update(&[], &[], 300);
        assert!(!forked.contains(child(90)));
        assert_eq!(forked.len(), 0);
    }
}
