//! Whether a box that runs also works.

mod options;
mod probe;
mod state;
mod streak;

use std::path::Path;
use std::time::Instant;

pub use options::HealthCheckOptions;
pub use probe::Probe;
pub(crate) use probe::Probes;
pub use state::HealthState;
use streak::Streak;

/// Probes a box again and again, and reports what follows from it. Never returns.
pub(crate) async fn check(
    options: &HealthCheckOptions,
    dir: &Path,
    probes: &Probes,
    report: impl Fn(HealthState),
) {
    let options = &options.clone().with_defaults();
    let started = Instant::now();
    let mut streak = Streak::default();
    loop {
        let starting = started.elapsed() < options.start_period;
        tokio::time::sleep(match starting {
            true => options.start_interval.min(options.interval),
            false => options.interval,
        })
        .await;
        let in_start_period = started.elapsed() < options.start_period;
        let probe = options.probe.run(dir, probes);
        let healthy = tokio::time::timeout(options.timeout, probe)
            .await
            .unwrap_or(false);
        report(streak.extend(healthy, in_start_period, options.retries));
    }
}
