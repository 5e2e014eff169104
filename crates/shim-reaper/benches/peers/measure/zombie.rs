use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::{PAUSE, SETTLE, WARM_UP};
use crate::peer::{
    AsyncProcess, Ours, POLLING_INTERVAL, Peer, PollingThread, ThreadPerChild, TokioAwaited,
    TokioDropped,
};
use crate::population::Population;
use crate::processors::Processors;
use crate::report::{Column, Limit, Report, Unit, Value};
use crate::samples::{Effort, MEDIAN, P99, Samples, turns};
use crate::system;

const BLOCKS: usize = 8;
const VICTIMS: usize = 200;

/// Fewer, because the polling thread takes a good part of its interval for each.
const POLLED_VICTIMS: usize = 20;

/// How long to wait until a zombie is reaped.
const REAP_TIMEOUT: Duration = Duration::from_secs(3);

const LABELS: [&str; 3] = [
    "Zombie lifetime, p50",
    "Zombie lifetime, p99",
    "Zombie lifetime, max",
];

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let processors = Processors::divide();
    let ours = Ours::new();
    let dedicated = Ours::dedicated();
    let io_uring = Ours::io_uring();
    let tokio = TokioAwaited::new();
    let peers: [&dyn Peer; 6] = [
        &ours,
        &dedicated,
        &io_uring,
        &tokio,
        &AsyncProcess,
        &ThreadPerChild,
    ];
    let mut samples: [Samples; 6] = Default::default();
    for _ in 0..effort.times(BLOCKS) {
        let mut populations = peers.map(|peer| Population::new(peer, WARM_UP + VICTIMS));
        thread::sleep(SETTLE);
        samples.iter_mut().for_each(Samples::open_block);
        processors.be_observer();
        for (round, peer) in turns(peers.len(), WARM_UP + VICTIMS) {
            let lifetime = lifetime(populations[peer].take()).unwrap();
            if round >= WARM_UP {
                samples[peer].push_time(lifetime);
            }
        }
        processors.be_observed();
    }
    for (peer, samples) in peers.iter().zip(&samples) {
        set(report, peer.column(), samples);
    }
    let [ours, dedicated, io_uring, tokio, ..] = &samples;
    for (label, q, limit) in [(LABELS[0], MEDIAN, 0.9), (LABELS[1], P99, 1.2)] {
        report
            .row(label, Unit::Time)
            .goal(
                "tokio awaited",
                ours.ratio_to(tokio, q),
                Limit::AtMost(limit),
            )
            .goal(
                "tokio awaited, dedicated",
                dedicated.ratio_to(tokio, q),
                Limit::AtMost(limit),
            )
            .goal(
                "tokio awaited, io_uring",
                io_uring.ratio_to(tokio, q),
                Limit::AtMost(limit),
            );
    }
    run_polling(effort, &processors, report);
}

fn run_polling(effort: &Effort, processors: &Processors, report: &mut Report) {
    let victims = effort.times(POLLED_VICTIMS);
    let polling = PollingThread::start_with(Vec::new());
    let mut population = Population::new(&polling, victims);
    let mut samples = Samples::default();
    samples.open_block();
    processors.be_observer();
    for victim in 0..victims {
        // Spread over the interval: a kill just after a poll would always be the worst case.
        thread::sleep(POLLING_INTERVAL.mul_f64(victim as f64 / victims as f64));
        samples.push_time(lifetime(population.take()).unwrap());
    }
    processors.be_observed();
    set(report, Column::Polling, &samples);
}

/// Measures the peers that leave a SIGCHLD handler behind.
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
            None => Value::MoreThan(REAP_TIMEOUT.as_secs_f64()),
        };
        for label in LABELS {
            report
                .row(label, Unit::Time)
                .set(Column::TokioDroppedIdle, value);
        }
        // A busy tokio runtime reaps the zombie that the idle one left.
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

/// Kills a child and returns how long it was a zombie. Spins on its own pidfd, because a thread that
/// has to be woken would miss most zombies. A zombie that is reaped between two polls counts as 0.
fn lifetime(pid: u32) -> Option<Duration> {
    thread::sleep(PAUSE);
    let pidfd = system::pidfd_open(pid);
    system::kill(pid);
    let mut events = PollFlags::empty();
    while events.is_empty() {
        events = system::poll_now(&pidfd, PollFlags::POLLIN);
    }
    let exited = Instant::now();
    if events.contains(PollFlags::POLLHUP) {
        return Some(Duration::ZERO);
    }
    while exited.elapsed() < REAP_TIMEOUT {
        if !system::poll_now(&pidfd, PollFlags::empty()).is_empty() {
            return Some(exited.elapsed());
        }
    }
    None
}
