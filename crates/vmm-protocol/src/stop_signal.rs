//! The grace period of a SIGTERM by which a runtime asks a shim to stop its payload.
//!
//! The runtime queues the signal as `sigqueue(3)` does: `si_code` is [`SI_QUEUE`], and the value of the
//! signal is the grace period in milliseconds. A SIGTERM without a value, such as that of `kill(1)`, has
//! the grace period of the spec.

use std::time::Duration;

/// The `si_code` of a signal that has a value, `sigaction(2)`.
pub const SI_QUEUE: i32 = -1;

/// Returns the value of the signal. The longest grace period is 49 days.
pub fn value_of_grace(grace: Duration) -> i32 {
    u32::try_from(grace.as_millis())
        .unwrap_or(u32::MAX)
        .cast_signed()
}

/// Returns the grace period of a signal with this `si_code` and value, or `None` if it has no value.
///
/// ```
/// use std::time::Duration;
/// use vmm_protocol::stop_signal::{SI_QUEUE, grace_of, value_of_grace};
///
/// let grace = Duration::from_millis(1500);
/// assert_eq!(grace_of(SI_QUEUE, value_of_grace(grace)), Some(grace));
/// ```
pub fn grace_of(si_code: i32, value: i32) -> Option<Duration> {
    (si_code == SI_QUEUE).then(|| Duration::from_millis(value.cast_unsigned().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_grace_period_is_kept_and_a_longer_one_is_the_longest() {
        let month = Duration::from_secs(31 * 24 * 3600);
        assert_eq!(grace_of(SI_QUEUE, value_of_grace(month)), Some(month));
        let longest = grace_of(SI_QUEUE, value_of_grace(Duration::MAX));
        assert_eq!(longest, Some(Duration::from_millis(u32::MAX.into())));
    }

    #[test]
    fn a_signal_without_a_value_has_no_grace_period() {
        let si_user = 0;
        assert_eq!(grace_of(si_user, 7), None);
    }
}
