use std::thread;
use std::time::{Duration, Instant};

use super::{SETTLE, thousands};
use crate::clock;
use crate::effort::Effort;
use crate::goal::Limit;
use crate::peer::{AsyncProcess, Ours, Peer, ThreadPerChild, TokioAwaited, TokioDropped};
use crate::population::Population;
use crate::report::Report;
use crate::samples::{MEDIAN, Samples};
use crate::system;
use crate::unit::Unit;

const LIVE: [usize; 3] = [10, 1_000, 10_000];

/// As many as `tokio` with the `Child` dropped can be asked to have.
const LIVE_DROPPED: usize = 4_000;

/// Beyond that there would be too many threads.
const MAX_THREADS: usize = 1_000;

const ROUNDS: usize = 25;
const ROUNDS_DROPPED: usize = 5;

/// In a round: enough to include what a peer puts off.
const EXITS: usize = 40;

/// Between a kill and the next, at the least.
const PACE: Duration = Duration::from_millis(1);

/// For what follows the last exit.
const TAIL: Duration = Duration::from_millis(5);

/// How long to look at what is spent without any exit.
const QUIET: Duration = Duration::from_secs(1);

pub(super) fn run(effort: &Effort, report: &mut Report) {
    for live in [LIVE[0], LIVE[1], LIVE_DROPPED, LIVE[2]] {
        report.row(label(live), Unit::Time);
    }
    let ours = LIVE.map(|_| Ours::new());
    let mut samples: [Samples; LIVE.len()] = Default::default();
    {
        let mut populations: Vec<Population<'_>> = ours
            .iter()
            .zip(LIVE)
            .map(|(ours, live)| Population::new(ours, live))
            .collect();
        let quiet = quiet();
        for _ in 0..effort.times(ROUNDS) {
            for (population, samples) in populations.iter_mut().zip(&mut samples) {
                samples.push_block(per_exit(population, quiet));
            }
        }
    }
    for (samples, live) in samples.iter().zip(LIVE) {
        report
            .row(label(live), Unit::Time)
            .set(ours[0].column(), samples.median());
    }
    let [few, .., many] = &samples;
    report.row(label(LIVE[LIVE.len() - 1]), Unit::Time).goal(
        "that at 10 live",
        many.ratio_to(few, MEDIAN),
        Limit::AtMost(1.2),
    );
    drop(ours);

    for peer in [&TokioAwaited::new() as &dyn Peer, &AsyncProcess] {
        measure(effort, report, peer, &LIVE, ROUNDS);
    }
    let few = LIVE.map(|live| live.min(MAX_THREADS));
    measure(effort, report, &ThreadPerChild, &few[..2], ROUNDS);
}

/// Leaves a handler of SIGCHLD behind.
pub(super) fn run_dropped(effort: &Effort, report: &mut Report) {
    let ours = measure(effort, report, &Ours::new(), &[LIVE_DROPPED], ROUNDS);
    let live = [LIVE[0], LIVE[1], LIVE_DROPPED];
    let dropped = measure(effort, report, &TokioDropped::busy(), &live, ROUNDS_DROPPED);
    report.row(label(LIVE_DROPPED), Unit::Time).goal(
        "tokio dropped",
        dropped / ours,
        Limit::Cheaper(50.0),
    );
}

/// Returns the median at the last of the `sizes`.
fn measure(
    effort: &Effort,
    report: &mut Report,
    peer: &dyn Peer,
    sizes: &[usize],
    rounds: usize,
) -> f64 {
    let mut population = Population::new(peer, 0);
    let mut median = f64::NAN;
    for live in sizes {
        population.grow_to(*live);
        let quiet = quiet();
        let mut samples = Samples::default();
        for _ in 0..effort.times(rounds) {
            samples.push_block(per_exit(&mut population, quiet));
        }
        median = samples.median();
        report
            .row(label(*live), Unit::Time)
            .set(peer.column(), median);
    }
    median
}

fn label(live: usize) -> String {
    format!("CPU per exit, {} live", thousands(live))
}

/// What a second costs without an exit.
fn quiet() -> f64 {
    thread::sleep(SETTLE);
    let before = clock::others();
    thread::sleep(QUIET);
    (clock::others() - before) / QUIET.as_secs_f64()
}

/// What all threads but this one, which kills and starts, spend on an exit: user and system time.
fn per_exit(population: &mut Population<'_>, quiet: f64) -> f64 {
    thread::sleep(TAIL);
    let (before, start) = (clock::others(), Instant::now());
    let live = population.len();
    for _ in 0..EXITS {
        // Of the same age at every size, because the kernel frees a young process for less.
        let pid = population.take_recent(LIVE[0]);
        system::kill(pid);
        thread::sleep(PACE);
        while !system::is_collected(pid) {
            thread::sleep(PACE);
        }
        population.grow_to(live);
    }
    thread::sleep(TAIL);
    let spent = clock::others() - before;
    (spent - quiet * start.elapsed().as_secs_f64()) / EXITS as f64
}
