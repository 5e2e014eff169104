use std::thread;
use std::time::Duration;

use super::{SETTLE, thousands};
use crate::column::Column;
use crate::effort::Effort;
use crate::goal::Limit;
use crate::peer::{Ours, PollingThread};
use crate::population::Population;
use crate::report::Report;
use crate::samples::{MEDIAN, Samples};
use crate::unit::Unit;

const LIVE: [usize; 4] = [0, 10, 1_000, 10_000];
const ROUNDS: usize = 5;

/// A whole number of intervals of all that work by interval.
const WINDOW: Duration = Duration::from_secs(4);

/// All sizes at the same time, each by the clocks of its own threads; the peers in turns.
pub(super) fn run(effort: &Effort, report: &mut Report) {
    let window = effort.window(WINDOW);
    let ours = LIVE.map(|_| Ours::new());
    let populations: Vec<Population<'_>> = ours
        .iter()
        .zip(LIVE)
        .map(|(ours, live)| Population::new(ours, live))
        .collect();
    thread::sleep(WINDOW / 4);
    let mut of_ours: [Samples; LIVE.len()] = Default::default();
    let mut of_polling: [Samples; LIVE.len()] = Default::default();
    for _ in 0..effort.times(ROUNDS) {
        thread::sleep(SETTLE);
        spend(window, &mut of_ours, |i| ours[i].site.cpu());
        let polling: Vec<PollingThread> = populations
            .iter()
            .map(|population| PollingThread::of(population.pids()))
            .collect();
        thread::sleep(SETTLE);
        spend(window, &mut of_polling, |i| polling[i].cpu());
    }
    for (i, live) in LIVE.into_iter().enumerate() {
        report
            .row(label(live), Unit::Time)
            .set(Column::Ours, of_ours[i].median())
            .set(Column::Polling, of_polling[i].median());
    }
    let [_, few, .., many] = &of_ours;
    let [.., polling] = &of_polling;
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

/// What each of them spends per second of `window`.
fn spend(window: Duration, samples: &mut [Samples], cpu: impl Fn(usize) -> Duration) {
    let before: Vec<Duration> = (0..samples.len()).map(&cpu).collect();
    thread::sleep(window);
    for (i, samples) in samples.iter_mut().enumerate() {
        samples.push_block((cpu(i) - before[i]).as_secs_f64() / window.as_secs_f64());
    }
}

fn label(live: usize) -> String {
    format!("Idle CPU per second, {} live", thousands(live))
}
