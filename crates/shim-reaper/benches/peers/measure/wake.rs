use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::{PAUSE, SETTLE, WARM_UP};
use crate::peer::{Ours, Peer, ThreadPerChild, TokioAwaited};
use crate::report::{Limit, Report, Unit};
use crate::samples::{Effort, MEDIAN, P99, Samples, turns};
use crate::system;

const BLOCKS: usize = 8;
const VICTIMS: usize = 200;

/// Measures the time from just before the kill to the first statement after the await.
pub(super) fn run(effort: &Effort, report: &mut Report) {
    let ours = Ours::new();
    let dedicated = Ours::dedicated();
    let io_uring = Ours::io_uring();
    let tokio = TokioAwaited::new();
    let peers: [&dyn Peer; 5] = [&ours, &dedicated, &io_uring, &tokio, &ThreadPerChild];
    let mut samples: [Samples; 5] = Default::default();
    for _ in 0..effort.times(BLOCKS) {
        let (sender, receiver) = mpsc::channel();
        let victims = peers.map(|peer| {
            let start = |_| {
                let sender = sender.clone();
                peer.start(Some(Box::new(move || {
                    let now = Instant::now();
                    sender.send(now).unwrap();
                })))
            };
            (0..WARM_UP + VICTIMS).map(start).collect::<Vec<u32>>()
        });
        thread::sleep(SETTLE);
        samples.iter_mut().for_each(Samples::open_block);
        for (round, peer) in turns(peers.len(), WARM_UP + VICTIMS) {
            thread::sleep(PAUSE);
            let killed = Instant::now();
            system::kill(victims[peer][round]);
            let wake = receiver.recv().unwrap() - killed;
            if round >= WARM_UP {
                samples[peer].push_time(wake);
            }
        }
    }
    for (peer, samples) in peers.iter().zip(&samples) {
        for (label, value) in [
            ("Wake, p50", samples.median()),
            ("Wake, p99", samples.quantile(P99)),
            ("Wake, max", samples.max()),
        ] {
            report.row(label, Unit::Time).set(peer.column(), value);
        }
    }
    let [ours, dedicated, io_uring, tokio, ..] = &samples;
    for (label, q, limit) in [("Wake, p50", MEDIAN, 0.98), ("Wake, p99", P99, 1.2)] {
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
}
