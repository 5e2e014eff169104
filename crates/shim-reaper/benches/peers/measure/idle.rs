use std::thread;
use std::time::Duration;

use super::{SETTLE, thousands};
use crate::peer::{Ours, PollingThread};
use crate::population::Population;
use crate::report::{Column, Limit, Report, Unit};
use crate::samples::{Effort, MEDIAN, Samples};

const LIVE: [usize; 4] = [0, 10, 1_000, 10_000];
const ROUNDS: usize = 5;

/// A multiple of the interval of every peer with periodic work.
const WINDOW: Duration = Duration::from_secs(4);

/// Measures all sizes at the same time, each by the CPU clocks of its own threads, and the peers in
/// turns.
pub(super) fn run(effort: &Effort, report: &mut Report) {
    let window = effort.window(WINDOW);
    let ours = LIVE.map(|_| Ours::new());
    let populations: Vec<Population<'_>> = ours
        .iter()
        .zip(LIVE)
        .map(|(ours, live)| Population::new(ours, live))
        .collect();
    thread::sleep(WINDOW / 4);
    let mut our_samples: [Samples; LIVE.len()] = Default::default();
    let mut polling_samples: [Samples; LIVE.len()] = Default::default();
    for _ in 0..effort.times(ROUNDS) {
        thread::sleep(SETTLE);
        sample_cpu_time(window, &mut our_samples, |i| ours[i].runtime.cpu_time());
        let polling: Vec<PollingThread> = populations
            .iter()
            .map(|population| PollingThread::start_with(population.pids()))
            .collect();
        thread::sleep(SETTLE);
        sample_cpu_time(window, &mut polling_samples, |i| polling[i].cpu_time());
    }
    for (i, live) in LIVE.into_iter().enumerate() {
        report
            .row(label(live), Unit::Time)
            .set(Column::Ours, our_samples[i].median())
            .set(Column::Polling, polling_samples[i].median());
    }
    let [_, few, .., many] = &our_samples;
    let [.., polling] = &polling_samples;
    report
        .row(label(LIVE[LIVE.len() - 1]), Unit::Time)
        .goal(
            "that at 10 live",
            many.ratio_to(few, MEDIAN),
            Limit::AtMost(1.2),
        )
        .goal(
            "the polling thread",
            polling.ratio_to(many, MEDIAN),
            Limit::Cheaper(100.0),
        );
}

/// Adds the CPU time that each of them uses per second of `window`.
fn sample_cpu_time(window: Duration, samples: &mut [Samples], cpu: impl Fn(usize) -> Duration) {
    let before: Vec<Duration> = (0..samples.len()).map(&cpu).collect();
    thread::sleep(window);
    for (i, samples) in samples.iter_mut().enumerate() {
        samples.push_block((cpu(i) - before[i]).as_secs_f64() / window.as_secs_f64());
    }
}

fn label(live: usize) -> String {
    format!("Idle CPU per second, {} live", thousands(live))
}
