//! The users of boxes: each box whose engine starts a VMM has one of its own.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::geteuid;
use vmm_protocol::{ConfinementRule, PayloadSpec};

use crate::{RuntimeError, RuntimeOptions};

/// The users of boxes by default. No distribution assigns users or groups of this range,
/// <https://systemd.io/UIDS-GIDS>.
const DEFAULT_RANGE: RangeInclusive<u32> = 0x7000_0000..=0x7000_ffff;

/// The users that the boxes of a runtime get.
#[derive(Debug)]
pub(crate) struct BoxUids {
    /// `None` if no box gets a user.
    range: Option<RangeInclusive<u32>>,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    uids: BTreeSet<u32>,
    /// Where the search begins, so that a user is not assigned again soon after its box was removed.
    next: u32,
}

impl BoxUids {
    /// Creates the users for a runtime with these options. Logs why boxes get none.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::BoxUids`] if the range of the options cannot be used.
    pub(crate) fn new(options: &RuntimeOptions) -> Result<Self, RuntimeError> {
        if !options.policy.applies(ConfinementRule::User) {
            return Ok(Self::of(None));
        }
        let range = options.box_uids.clone().unwrap_or(DEFAULT_RANGE);
        let reason = if range.is_empty() || *range.start() == 0 || *range.end() == u32::MAX {
            "it must be a range of users without root"
        } else if !geteuid().is_root() {
            "only root can start processes of other users"
        } else if !is_mapped("/proc/self/uid_map", &range)
            || !is_mapped("/proc/self/gid_map", &range)
        {
            "the user namespace of this process does not have all of them"
        } else {
            return Ok(Self::of(Some(range)));
        };
        if options.box_uids.is_some() {
            return Err(RuntimeError::BoxUids { range, reason });
        }
        tracing::info!(
            ?range,
            reason,
            "the VMMs of guests get the user of this process"
        );
        Ok(Self::of(None))
    }

    fn of(range: Option<RangeInclusive<u32>>) -> Self {
        let next = range.as_ref().map_or(0, |range| *range.start());
        Self {
            range,
            taken: Mutex::new(Taken {
                uids: BTreeSet::new(),
                next,
            }),
        }
    }

    /// Returns the user for a box that has the user `recorded` in its record, if any, and reserves it.
    /// A payload can write to the record, so it counts only if no other box has that user. Returns
    /// `None` for a box that needs no user.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NoFreeUid`].
    pub(crate) fn reserve(
        &self,
        payload: &PayloadSpec,
        recorded: Option<u32>,
    ) -> Result<Option<u32>, RuntimeError> {
        let Some(range) = self.range.as_ref().filter(|_| !payload.is_process()) else {
            return Ok(None);
        };
        let mut taken = self.taken();
        if let Some(uid) = recorded.filter(|uid| range.contains(uid))
            && taken.uids.insert(uid)
        {
            return Ok(Some(uid));
        }
        let from_next = (taken.next..=*range.end()).chain(range.clone());
        let Some(uid) = from_next.into_iter().find(|uid| !taken.uids.contains(uid)) else {
            return Err(RuntimeError::NoFreeUid {
                range: range.clone(),
            });
        };
        taken.uids.insert(uid);
        taken.next = uid + 1;
        Ok(Some(uid))
    }

    /// Releases the user of a box that does not exist any more.
    pub(crate) fn release(&self, uid: Option<u32>) {
        if let Some(uid) = uid {
            self.taken().uids.remove(&uid);
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a line of the map (`user_namespaces(7)`) has all of the range.
fn is_mapped(map: &str, range: &RangeInclusive<u32>) -> bool {
    let map = fs::read_to_string(map).unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        let (start, end) = (u64::from(*range.start()), u64::from(*range.end()));
        first <= start && end < first.saturating_add(count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> PayloadSpec {
        let mut payload = PayloadSpec::command::<String>([]);
        payload.engine = "qemu".to_owned();
        payload
    }

    #[test]
    fn each_box_gets_a_user_of_its_own_until_none_is_left() {
        let uids = BoxUids::of(Some(10..=12));
        for uid in 10..=12 {
            assert_eq!(uids.reserve(&guest(), None).unwrap(), Some(uid));
        }
        let error = uids.reserve(&guest(), None).unwrap_err().to_string();
        assert!(error.contains("10-12"), "{error}");
        uids.release(Some(11));
        assert_eq!(uids.reserve(&guest(), None).unwrap(), Some(11));
    }

    #[test]
    fn a_released_user_is_not_assigned_at_once() {
        let uids = BoxUids::of(Some(10..=12));
        let first = uids.reserve(&guest(), None).unwrap();
        uids.release(first);
        assert_eq!(uids.reserve(&guest(), None).unwrap(), Some(11));
    }

    #[test]
    fn a_recorded_user_is_kept_unless_it_is_another_boxs_or_out_of_range() {
        let uids = BoxUids::of(Some(10..=12));
        assert_eq!(uids.reserve(&guest(), Some(12)).unwrap(), Some(12));
        assert_eq!(uids.reserve(&guest(), Some(12)).unwrap(), Some(10));
        assert_eq!(uids.reserve(&guest(), Some(0)).unwrap(), Some(11));
    }

    #[test]
    fn a_command_gets_no_user() {
        let uids = BoxUids::of(Some(10..=10));
        let command = PayloadSpec::command(["true"]);
        assert_eq!(uids.reserve(&command, Some(10)).unwrap(), None);
        assert_eq!(uids.reserve(&guest(), None).unwrap(), Some(10));
    }
}
