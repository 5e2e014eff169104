use std::fmt;

use serde::{Deserialize, Serialize};

/// The health of a box, according to its health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No probe has succeeded yet, and too few have failed.
    Starting,
    /// The latest probe succeeded, or fewer than [`retries`] have failed since the last success.
    ///
    /// [`retries`]: crate::HealthCheckOptions::retries
    Healthy,
    /// Too many consecutive probes failed, or the box ended by itself.
    Unhealthy,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// The health state and the number of consecutive failures.
#[derive(Debug)]
pub(super) struct Streak {
    state: HealthState,
    failures: u32,
}

impl Default for Streak {
    fn default() -> Self {
        Self {
            state: HealthState::Starting,
            failures: 0,
        }
    }
}

impl Streak {
    /// Records the result of a probe and returns the new state. As in Docker, failures in the start
    /// period do not count unless a probe has succeeded before.
    pub(super) fn record(
        &mut self,
        healthy: bool,
        in_start_period: bool,
        retries: u32,
    ) -> HealthState {
        if healthy {
            self.state = HealthState::Healthy;
            self.failures = 0;
        } else if self.state != HealthState::Starting || !in_start_period {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= retries {
                self.state = HealthState::Unhealthy;
            }
        }
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::HealthState::{Healthy, Starting, Unhealthy};
    use super::*;

    fn play(probes: &[(bool, bool)], retries: u32) -> Vec<HealthState> {
        let mut streak = Streak::default();
        probes
            .iter()
            .map(|(healthy, in_start_period)| streak.record(*healthy, *in_start_period, retries))
            .collect()
    }

    #[test]
    fn consecutive_failures_are_unhealthy_and_one_success_is_healthy() {
        let probes = [
            (false, false),
            (false, false),
            (true, false),
            (false, false),
        ];
        assert_eq!(play(&probes, 2), [Starting, Unhealthy, Healthy, Healthy]);
    }

    #[test]
    fn a_success_resets_the_count() {
        let probes = [(true, false), (false, false), (true, false), (false, false)];
        assert_eq!(play(&probes, 2), [Healthy; 4]);
    }

    #[test]
    fn failures_in_the_start_period_count_only_after_a_success() {
        let probes = [(false, true), (false, true), (false, false)];
        assert_eq!(play(&probes, 1), [Starting, Starting, Unhealthy]);
        let probes = [(true, true), (false, true)];
        assert_eq!(play(&probes, 1), [Healthy, Unhealthy]);
    }
}
