use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::{PAUSE, SETTLE, WARM_UP};
use crate::column::Column;
use crate::effort::Effort;
use crate::goal::Limit;
use crate::peer::{
    AsyncProcess, Ours, POLLING_INTERVAL, Peer, PollingThread, ThreadPerChild, TokioAwaited,
    TokioDropped,
};
use crate::population::Population;
use crate::processors::Processors;
use crate::report::Report;
use crate::samples::{MEDIAN, P99, Samples};
use crate::system;
use crate::turns::turns;
use crate::unit::Unit;
use crate::value::Value;

const BLOCKS: usize = 8;
const VICTIMS: usize = 200;

/// Each of them takes the polling thread a good part of its interval.
const POLLED_VICTIMS: usize = 20;

/// When to stop waiting for a zombie to be collected.
const PATIENCE: Duration = Duration::from_secs(3);

const LABELS: [&str; 3] = [
    "Zombie lifetime, p50",
    "Zombie lifetime, p99",
    "Zombie lifetime, max",
];

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let processors = Processors::divide();
    let ours = Ours::new();
    let tokio = TokioAwaited::new();
    let peers: [&dyn Peer; 4] = [&ours, &tokio, &AsyncProcess, &ThreadPerChild];
    let mut samples: [Samples; 4] = Default::default();
    for _ in 0..effort.times(BLOCKS) {
        let mut populations = peers.map(|peer| Population::new(peer, WARM_UP + VICTIMS));
        thread::sleep(SETTLE);
        samples.iter_mut().for_each(Samples::open_block);
        processors.be_observer();
        for (round, whose) in turns(peers.len(), WARM_UP + VICTIMS) {
            let lifetime = lifetime(populations[whose].take()).unwrap();
            if round >= WARM_UP {
                samples[whose].push_time(lifetime);
            }
        }
        processors.be_observed();
    }
    for (peer, samples) in peers.iter().zip(&samples) {
        set(report, peer.column(), samples);
    }
    let [ours, tokio, ..] = &samples;
    for (label, q, limit) in [(LABELS[0], MEDIAN, 1.0), (LABELS[1], P99, 1.2)] {
        report.row(label, Unit::Time).goal(
            "tokio awaited",
            ours.ratio_to(tokio, q),
            Limit::AtMost(limit),
        );
    }
    poll(effort, &processors, report);
}

fn poll(effort: &Effort, processors: &Processors, report: &mut Report) {
    let victims = effort.times(POLLED_VICTIMS);
    let polling = PollingThread::of(Vec::new());
    let mut population = Population::new(&polling, victims);
    let mut samples = Samples::default();
    samples.open_block();
    processors.be_observer();
    for victim in 0..victims {
        // At every phase of the interval, because one just after a poll would be the worst case.
        thread::sleep(POLLING_INTERVAL.mul_f64(victim as f64 / victims as f64));
        samples.push_time(lifetime(population.take()).unwrap());
    }
    processors.be_observed();
    set(report, Column::Polling, &samples);
}

/// Leaves a handler of SIGCHLD behind.
pub(super) fn run_dropped(effort: &Effort, report: &mut Report) {
    let processors = Processors::divide();
    {
        let idle = TokioDropped::idle();
        let mut population = Population::new(&idle, 1);
        thread::sleep(SETTLE);
        processors.be_observer();
        let lifetime = lifetime(population.take());
        processors.be_observed();
        let value = match lifetime {
            Some(lifetime) => Value::Measured(lifetime.as_secs_f64()),
            None => Value::MoreThan(PATIENCE.as_secs_f64()),
        };
        for label in LABELS {
            report
                .row(label, Unit::Time)
                .set(Column::TokioDroppedIdle, value);
        }
        // A busy runtime collects what an idle one has left behind.
        let _busy = TokioDropped::busy();
        drop(population);
    }
    let busy = TokioDropped::busy();
    let mut samples = Samples::default();
    for _ in 0..effort.times(BLOCKS) {
        let mut population = Population::new(&busy, VICTIMS);
        thread::sleep(SETTLE);
        samples.open_block();
        processors.be_observer();
        for _ in 0..VICTIMS {
            samples.push_time(lifetime(population.take()).unwrap());
        }
        processors.be_observed();
    }
    set(report, Column::TokioDroppedBusy, &samples);
}

fn set(report: &mut Report, column: Column, samples: &Samples) {
    let values = [samples.median(), samples.quantile(P99), samples.max()];
    for (label, value) in LABELS.into_iter().zip(values) {
        report.row(label, Unit::Time).set(column, value);
    }
}

/// Kills a child and spins on a pidfd of our own, because a thread that had to be woken would see
/// most zombies only after they are gone. One that comes and goes between two polls counts as 0.
fn lifetime(pid: u32) -> Option<Duration> {
    thread::sleep(PAUSE);
    let pidfd = system::pidfd_open(pid);
    system::kill(pid);
    let mut seen = PollFlags::empty();
    while seen.is_empty() {
        seen = system::poll_now(&pidfd, PollFlags::POLLIN);
    }
    let exited = Instant::now();
    if seen.contains(PollFlags::POLLHUP) {
        return Some(Duration::ZERO);
    }
    while exited.elapsed() < PATIENCE {
        if !system::poll_now(&pidfd, PollFlags::empty()).is_empty() {
            return Some(exited.elapsed());
        }
    }
    None
}
