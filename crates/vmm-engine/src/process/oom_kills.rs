use std::sync::{Mutex, PoisonError};

use vmm_protocol::ControlGroup;

/// Decides which processes of a box the kernel has killed for lack of memory: the control group counts
/// these kills, and names no process.
#[derive(Debug, Default)]
pub(super) struct OomKills {
    /// How many of the kills are attributed, from the first one.
    attributed: Mutex<u64>,
}

impl OomKills {
    /// Returns the number of kills in the box so far.
    pub(super) fn count() -> u64 {
        ControlGroup::of_this_process().map_or(0, |group| group.oom_kills())
    }

    /// Attributes a kill to an execution that SIGKILL has ended, and before whose start the number of kills
    /// was `before`. Returns false if no kill since then is left.
    pub(super) fn attribute_to_execution(&self, before: u64) -> bool {
        self.attribute(Self::count(), before, 1)
    }

    /// Attributes all kills that are left to the payload, which SIGKILL has ended. Returns false if none is
    /// left.
    pub(super) fn attribute_to_payload(&self) -> bool {
        self.attribute(Self::count(), 0, u64::MAX)
    }

    fn attribute(&self, count: u64, before: u64, limit: u64) -> bool {
        let mut attributed = self
            .attributed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // An execution that has started later was not killed by the kills before.
        let first = before.max(*attributed);
        if count <= first {
            return false;
        }
        *attributed = count.min(first.saturating_add(limit));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_attributed_to_one_process_that_ran() {
        let kills = OomKills::default();
        let execution = |count, before| kills.attribute(count, before, 1);
        assert!(!execution(0, 0));
        assert!(execution(2, 0));
        assert!(execution(2, 0));
        assert!(!execution(2, 0));
        // A process of the payload is killed before the next execution starts.
        assert!(!execution(3, 3));
        let payload = |count| kills.attribute(count, 0, u64::MAX);
        assert!(payload(3));
        assert!(!payload(3));
        assert!(!execution(3, 0));
    }
}
