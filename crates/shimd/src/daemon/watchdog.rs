use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use vmm_runtime::VmmRuntime;

use super::service_manager;

/// Tells the service manager that the daemon is alive as long as its reaper sweeps, which it does
/// even when there is nothing to do. Once it says no more, the daemon is restarted.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    sweeps: u64,
}

impl Watchdog {
    /// Twice as often as the service manager wants to hear it. Never returns.
    pub(super) async fn run(mut self, runtime: VmmRuntime, limit: Duration) {
        // An interval is not zero.
        let period = (limit / 2).max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.is_alive(runtime.metrics().await.shim_reaper_sweeps) {
                service_manager::alive();
            } else {
                tracing::error!("the reaper does not sweep: the watchdog is not fed");
            }
        }
    }

    /// Whether there was a sweep since this was last asked.
    fn is_alive(&mut self, sweeps: u64) -> bool {
        sweeps > std::mem::replace(&mut self.sweeps, sweeps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_sweeps_are_a_sign_of_life() {
        let mut watchdog = Watchdog::default();
        let alive = [0, 1, 1, 1, 3, 4].map(|sweeps| watchdog.is_alive(sweeps));
        assert_eq!(alive, [false, true, false, false, true, true]);
    }
}
