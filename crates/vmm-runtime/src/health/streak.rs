use super::HealthState;

/// The probes so far, as far as they matter.
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
    /// As Docker counts: failures in the start period do not, unless a probe has succeeded before.
    pub(super) fn extend(
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
            .map(|(healthy, in_start_period)| streak.extend(*healthy, *in_start_period, retries))
            .collect()
    }

    #[test]
    fn enough_failures_in_a_row_are_unhealthy_and_one_success_is_healthy() {
        let probes = [
            (false, false),
            (false, false),
            (true, false),
            (false, false),
        ];
        assert_eq!(play(&probes, 2), [Starting, Unhealthy, Healthy, Healthy]);
    }

    #[test]
    fn a_success_starts_the_count_anew() {
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
