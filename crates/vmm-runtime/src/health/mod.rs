//! Health checks of running boxes.

mod options;
mod probe;
mod state;

use std::path::Path;
use std::time::Instant;

pub use options::HealthCheckOptions;
pub use probe::Probe;
pub(crate) use probe::ProbeRunner;
pub use state::HealthState;
use state::Streak;

/// Probes a box periodically and reports the health state after each probe. Does not probe it while it
/// is paused. Never returns.
pub(crate) async fn run_checks(
    options: &HealthCheckOptions,
    dir: &Path,
    probes: &ProbeRunner,
    is_paused: impl Fn() -> bool,
    report: impl Fn(HealthState),
) {
    let options = &options.clone().with_defaults();
    let started = Instant::now();
    let mut streak = Streak::default();
    loop {
        let starting = started.elapsed() < options.start_period;
        let pause = if starting {
            options.start_interval.min(options.interval)
        } else {
            options.interval
        };
        tokio::time::sleep(pause).await;
        if is_paused() {
            continue;
        }
        let in_start_period = started.elapsed() < options.start_period;
        let probe = options.probe.run(dir, probes);
        let healthy = tokio::time::timeout(options.timeout, probe)
            .await
            .unwrap_or(false);
        if is_paused() {
            // The probe may have failed because of that.
            continue;
        }
        report(streak.record(healthy, in_start_period, options.retries));
    }
}
