//! The sets of shims, without a kernel.

use std::time::Duration;

use super::*;
use crate::shim::Role;

fn pending(id: u64, check: Check, pidfd: Option<()>) -> Pending<()> {
    let pid = u32::try_from(id).unwrap();
    let shim = Arc::new(Shim::new(pid, id, true, Role::Owned, pidfd, None));
    Pending { shim, check }
}

/// Returns a registry with these shims, which have no pidfd.
fn registry_with(ids: std::ops::RangeInclusive<u64>) -> Registry<()> {
    let mut registry = Registry::new();
    for id in ids {
        registry.admit(pending(id, Check::OnEvent, None));
    }
    registry
}

#[test]
fn registry_is_idle_without_shims_and_orphaned_groups() {
    let mut registry = registry_with(1..=1);
    assert!(!registry.is_idle());
    let (shim, _) = registry.get(1).unwrap();
    registry.remove(&shim);
    assert!(
        !registry.is_idle(),
        "the group of the shim may have orphans"
    );
    registry.orphaned_groups.clear();
    assert!(registry.is_idle());
}

#[test]
fn shim_is_checked_at_once_if_its_registration_asks_for_it() {
    let mut registry = Registry::new();
    registry.admit(pending(1, Check::OnEvent, Some(())));
    registry.admit(pending(2, Check::Now, Some(())));
    registry.admit(pending(3, Check::NotFound, None));
    registry.admit(pending(4, Check::Again, Some(())));
    assert_eq!(registry.ready, [2, 3, 4]);
    let phase = |id| registry.get(id).map(|(_, phase)| phase);
    assert_eq!(phase(2), Some(Phase::Alive));
    assert_eq!(phase(3), Some(Phase::NotFound));
    assert_eq!(phase(4), None, "a finished shim is not admitted again");
}

#[test]
fn check_that_panics_is_repeated() {
    let mut registry = Registry::<()>::new();
    registry.ready.extend([1, 2]);
    assert_eq!(registry.next_ready(), Some(1));
    assert_eq!(registry.take_unconfirmed(), Some(1));
    assert_eq!(registry.next_ready(), Some(2));
    registry.finish_ready();
    assert_eq!(registry.take_unconfirmed(), None);
}

#[test]
fn sweep_goes_through_the_shims_without_a_pidfd_once() {
    let mut registry = registry_with(1..=4);
    registry.admit(pending(5, Check::OnEvent, Some(())));
    assert!(!registry.add_sweep_only(4));
    assert!(registry.add_sweep_only(5));
    registry.remove_sweep_only(1);
    for _ in 0..2 {
        registry.begin_sweep();
        assert_eq!(registry.next_sweep_only(2), [2, 3]);
        registry.advance_sweep(2);
        registry.advance_sweep(3);
        assert_eq!(registry.next_sweep_only(3), [4, 5]);
        registry.advance_sweep(4);
        registry.advance_sweep(5);
        assert!(registry.next_sweep_only(3).is_empty());
    }
}

#[test]
fn spot_checks_take_turns() {
    let mut registry = registry_with(1..=5);
    assert_eq!(registry.next_spot_checks(2), [1, 2]);
    assert_eq!(registry.next_spot_checks(2), [3, 4]);
    assert_eq!(registry.next_spot_checks(2), [5]);
    assert_eq!(registry.next_spot_checks(2), [1, 2]);
}

#[test]
fn comparisons_of_identities_take_turns() {
    let max = MAX_COMPARISONS_PER_SWEEP as u64;
    let mut registry = Registry::<()>::new();
    registry.begin_sweep();
    for id in 1..=max {
        assert!(registry.cursor.is_comparison_due(id));
        registry.cursor.add_comparison(id);
    }
    assert!(!registry.cursor.is_comparison_due(max + 1));
    registry.end_sweep();

    registry.begin_sweep();
    assert!(!registry.cursor.is_comparison_due(max));
    assert!(registry.cursor.is_comparison_due(max + 1));
    registry.end_sweep();

    registry.begin_sweep();
    assert!(registry.cursor.is_comparison_due(1));
}

#[test]
fn grace_period_ends_once_unless_the_check_panics() {
    let mut registry = registry_with(1..=2);
    let start = Instant::now();
    let [soon, later, retry] = [1, 2, 3].map(|seconds| start + Duration::from_secs(seconds));
    assert!(!registry.has_deferred());
    registry.defer(2, later);
    registry.defer(1, soon);
    assert!(registry.has_deferred());
    assert_eq!(registry.next_deadline(), Some(soon));
    assert_eq!(registry.get(1).unwrap().1, Phase::Deferred);

    assert_eq!(registry.next_expired(start, retry), None);
    assert_eq!(registry.next_expired(soon, retry), Some(1));
    assert_eq!(registry.next_expired(soon, retry), None);
    registry.finish_expired(1, retry);
    // The check of this one panics.
    assert_eq!(registry.next_expired(later, retry), Some(2));
    assert_eq!(registry.next_deadline(), Some(retry));
    assert_eq!(
        registry.next_expired(retry, retry + Duration::from_secs(1)),
        Some(2)
    );
    registry.finish_expired(2, retry + Duration::from_secs(1));
    assert_eq!(registry.next_deadline(), None);
}
