use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RestartPolicy;

/// The delay of the first restart. It doubles with each further end without a healthy period.
const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(60);

/// A run of at least this length resets the delay.
const HEALTHY_PERIOD: Duration = Duration::from_secs(10);

/// What decides whether and when a box is restarted, saved in its `box.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RestartState {
    /// Whether a user has started the box.
    pub(crate) started: bool,
    /// Whether a user has stopped it since it was started last.
    pub(crate) stopped: bool,
    /// Whether a restart is due.
    pub(crate) due: bool,
    /// The number of restarts, including the one that is due, since the last start by a user.
    pub(crate) count: u32,
    /// The number of ends since the last healthy period.
    pub(crate) quick_ends: u32,
}

impl RestartState {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the state after a start by a user.
    pub(crate) fn after_start() -> Self {
        Self {
            started: true,
            ..Self::default()
        }
    }

    /// Returns the state after the launch of a restart, which is due until the payload is ready.
    pub(crate) fn after_restart(self) -> Self {
        Self {
            stopped: false,
            ..self
        }
    }

    /// Returns the state after a stop by a user.
    pub(crate) fn after_stop(self) -> Self {
        Self {
            stopped: true,
            due: false,
            ..self
        }
    }

    /// Returns the state after the end of a run, or of a failed restart, which took `ran`.
    pub(crate) fn after_end(self, policy: RestartPolicy, failed: bool, ran: Duration) -> Self {
        let due = !self.stopped
            && match policy {
                RestartPolicy::No => false,
                RestartPolicy::OnFailure { max } => {
                    failed && max.is_none_or(|max| self.count < max)
                }
                RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            };
        if !due {
            return Self { due, ..self };
        }
        let quick_ends = if ran < HEALTHY_PERIOD {
            self.quick_ends
        } else {
            0
        };
        Self {
            due,
            count: self.count.saturating_add(1),
            quick_ends: quick_ends.saturating_add(1),
            ..self
        }
    }

    /// Returns the state of a box that is not running when a runtime opens its home.
    pub(crate) fn after_opening(self, policy: RestartPolicy) -> Self {
        let due = match policy {
            RestartPolicy::No | RestartPolicy::OnFailure { .. } => false,
            RestartPolicy::Always => true,
            RestartPolicy::UnlessStopped => !self.stopped,
        };
        if self.due || !due || !self.started {
            return self;
        }
        Self {
            due,
            quick_ends: 0,
            ..self
        }
    }

    /// Returns how long a restart that is due must wait.
    pub(crate) fn delay(&self) -> Duration {
        let Some(doublings) = self.quick_ends.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 2_u32.saturating_pow(doublings);
        MIN_DELAY.saturating_mul(factor).min(MAX_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RestartPolicy::{Always, No, OnFailure, UnlessStopped};

    const QUICK: Duration = Duration::from_millis(1);
    const ANY_FAILURE: RestartPolicy = OnFailure { max: None };

    #[test]
    fn the_policy_and_the_end_decide_whether_a_restart_is_due() {
        let running = RestartState::after_start();
        for (policy, after_success, after_failure) in [
            (No, false, false),
            (ANY_FAILURE, false, true),
            (Always, true, true),
            (UnlessStopped, true, true),
        ] {
            for (failed, expected) in [(false, after_success), (true, after_failure)] {
                let ended = running.after_end(policy, failed, QUICK);
                assert_eq!(ended.due, expected, "{policy} {failed}");
                assert_eq!(ended.count, u32::from(expected));
                let stopped = ended.after_stop();
                assert!(!stopped.due && !stopped.after_end(policy, failed, QUICK).due);
            }
        }
    }

    #[test]
    fn on_failure_restarts_at_most_max_times_after_a_start_by_a_user() {
        let policy = OnFailure { max: Some(2) };
        let mut state = RestartState::after_start();
        for _ in 0..2 {
            // A healthy period resets the delay only.
            state = state.after_end(policy, true, HEALTHY_PERIOD);
            assert!(state.due);
        }
        assert!(!state.after_end(policy, true, QUICK).due);
        assert!(
            RestartState::after_start()
                .after_end(policy, true, QUICK)
                .due
        );
    }

    #[test]
    fn the_delay_doubles_up_to_a_minute_and_a_healthy_period_resets_it() {
        let mut state = RestartState::after_start();
        let mut delays = Vec::new();
        for _ in 0..40 {
            state = state.after_end(Always, true, QUICK);
            delays.push(state.delay().as_millis());
        }
        assert_eq!(delays[..4], [100, 200, 400, 800]);
        assert_eq!(delays[9..12], [51_200, 60_000, 60_000]);
        assert_eq!(delays[39], 60_000);
        let reset = state.after_end(Always, true, HEALTHY_PERIOD);
        assert_eq!((reset.delay(), reset.count), (MIN_DELAY, 41));
    }

    #[test]
    fn an_opening_continues_what_is_due_and_starts_what_the_policy_asks_for() {
        let running = RestartState::after_start();
        let stopped = running.after_stop();
        for (policy, after_run, after_stop) in [
            (No, false, false),
            (ANY_FAILURE, false, false),
            (Always, true, true),
            (UnlessStopped, true, false),
        ] {
            assert_eq!(running.after_opening(policy).due, after_run, "{policy}");
            assert_eq!(stopped.after_opening(policy).due, after_stop, "{policy}");
            assert!(!RestartState::default().after_opening(policy).due);
        }
        let due = running.after_end(ANY_FAILURE, true, QUICK);
        assert_eq!(due.after_opening(ANY_FAILURE), due);
        // The box that a user had stopped is restarted from now on.
        let restarted = stopped.after_opening(Always).after_restart();
        assert!(restarted.after_end(Always, true, QUICK).due);
    }
}
