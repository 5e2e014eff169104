use std::thread;
use std::time::{Duration, Instant};

use super::{SETTLE, thousands};
use crate::peer::{AsyncProcess, Ours, Peer, ThreadPerChild, TokioAwaited, TokioDropped};
use crate::population::Population;
use crate::processors::cpu_time_of_others;
use crate::report::{Limit, Report, Unit};
use crate::samples::{Effort, MEDIAN, Samples, turns};
use crate::system;

const LIVE: [usize; 3] = [10, 1_000, 10_000];

/// The sizes at which tokio is measured in turns with the reaper. There are not enough descriptors for
/// the largest size of both.
const LIVE_PAIRED: [usize; 2] = [LIVE[0], LIVE[1]];

/// The most that `tokio` with dropped children can handle.
const LIVE_DROPPED: usize = 4_000;

/// The most threads of the peer with one thread per child.
const MAX_THREADS: usize = 1_000;

const ROUNDS: usize = 25;
const ROUNDS_DROPPED: usize = 5;

/// The exits per round: enough to include a peer's deferred work.
const EXITS_PER_ROUND: usize = 40;

/// The shortest time between two kills.
const KILL_INTERVAL: Duration = Duration::from_millis(1);

/// The time for the work after the last exit.
const SETTLE_AFTER_EXIT: Duration = Duration::from_millis(5);

/// The time over which the idle CPU time is measured.
const IDLE_WINDOW: Duration = Duration::from_secs(1);

pub(super) fn run(effort: &Effort, report: &mut Report) {
    for live in [LIVE[0], LIVE[1], LIVE_DROPPED, LIVE[2]] {
        report.row(label(live), Unit::Time);
    }
    {
        let ours = LIVE.map(|_| Ours::new());
        let tokio = LIVE_PAIRED.map(|_| TokioAwaited::new());
        let ours = ours.iter().map(|ours| ours as &dyn Peer).zip(LIVE);
        let tokio = tokio.iter().map(|tokio| tokio as &dyn Peer);
        let peers = ours.chain(tokio.zip(LIVE_PAIRED));
        let mut populations: Vec<Population<'_>> = peers
            .map(|(peer, live)| Population::new(peer, live))
            .collect();
        let mut samples: [Samples; LIVE.len() + LIVE_PAIRED.len()] = Default::default();
        let idle = idle_cpu_time();
        for (_, i) in turns(populations.len(), effort.times(ROUNDS)) {
            samples[i].push_block(per_exit(&mut populations[i], idle));
        }
        for (population, samples) in populations.iter().zip(&samples) {
            report
                .row(label(population.len()), Unit::Time)
                .set(population.column(), samples.median());
        }
        let (ours, tokio) = samples.split_at(LIVE.len());
        for ((ours, tokio), live) in ours.iter().zip(tokio).zip(LIVE_PAIRED) {
            let ratio = ours.ratio_to(tokio, MEDIAN);
            let row = report.row(label(live), Unit::Time);
            row.goal("tokio awaited", ratio, Limit::AtMost(0.75));
        }
        let [few, .., many] = ours else {
            unreachable!()
        };
        report.row(label(LIVE[LIVE.len() - 1]), Unit::Time).goal(
            "that at 10 live",
            many.ratio_to(few, MEDIAN),
            Limit::AtMost(1.2),
        );
    }

    measure(effort, report, &TokioAwaited::new(), &LIVE[2..], ROUNDS);
    measure(effort, report, &AsyncProcess, &LIVE, ROUNDS);
    let few = LIVE.map(|live| live.min(MAX_THREADS));
    measure(effort, report, &ThreadPerChild, &few[..2], ROUNDS);
}

/// Measures the peer that leaves a SIGCHLD handler behind.
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

/// Measures a peer with each number of live children. Returns the median at the last of `sizes`.
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
        let idle = idle_cpu_time();
        let mut samples = Samples::default();
        for _ in 0..effort.times(rounds) {
            samples.push_block(per_exit(&mut population, idle));
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

/// Returns the CPU time that a second without an exit costs.
fn idle_cpu_time() -> f64 {
    thread::sleep(SETTLE);
    let before = cpu_time_of_others();
    thread::sleep(IDLE_WINDOW);
    (cpu_time_of_others() - before) / IDLE_WINDOW.as_secs_f64()
}

/// Returns the user and system time that an exit costs in all threads but this one, which kills and
/// starts children.
fn per_exit(population: &mut Population<'_>, idle: f64) -> f64 {
    thread::sleep(SETTLE_AFTER_EXIT);
    let (before, start) = (cpu_time_of_others(), Instant::now());
    let live = population.len();
    for _ in 0..EXITS_PER_ROUND {
        // The same age at every size, because the kernel frees a young process faster.
        let pid = population.take_recent(LIVE[0]);
        system::kill(pid);
        thread::sleep(KILL_INTERVAL);
        while !system::is_reaped(pid) {
            thread::sleep(KILL_INTERVAL);
        }
        population.grow_to(live);
    }
    thread::sleep(SETTLE_AFTER_EXIT);
    let spent = cpu_time_of_others() - before;
    (spent - idle * start.elapsed().as_secs_f64()) / EXITS_PER_ROUND as f64
}
