use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::{PAUSE, SETTLE};
use crate::effort::Effort;
use crate::goal::Limit;
use crate::peer::{Ours, Peer, ThreadPerChild, TokioAwaited};
use crate::report::Report;
use crate::samples::{MEDIAN, P99, Samples};
use crate::system;
use crate::unit::Unit;

const BLOCKS: usize = 10;
const VICTIMS: usize = 100;

/// From just before the kill to the first statement after the await.
pub(super) fn run(effort: &Effort, report: &mut Report) {
    let ours = Ours::new();
    let tokio = TokioAwaited::new();
    let peers: [&dyn Peer; 3] = [&ours, &tokio, &ThreadPerChild];
    let mut samples: [Samples; 3] = Default::default();
    for _ in 0..effort.times(BLOCKS) {
        let (awake, told) = mpsc::channel();
        let victims = peers.map(|peer| {
            let start = |_| {
                let awake = awake.clone();
                peer.start(Some(Box::new(move || {
                    let now = Instant::now();
                    awake.send(now).unwrap();
                })))
            };
            (0..VICTIMS).map(start).collect::<Vec<u32>>()
        });
        thread::sleep(SETTLE);
        samples.iter_mut().for_each(Samples::open_block);
        for victim in 0..VICTIMS {
            for (victims, samples) in victims.iter().zip(&mut samples) {
                thread::sleep(PAUSE);
                let killed = Instant::now();
                system::kill(victims[victim]);
                samples.push_time(told.recv().unwrap() - killed);
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
    let [ours, tokio, _] = &samples;
    for (label, q, limit) in [("Wake, p50", MEDIAN, 1.0), ("Wake, p99", P99, 1.2)] {
        report.row(label, Unit::Time).goal(
            "tokio awaited",
            ours.ratio_to(tokio, q),
            Limit::AtMost(limit),
        );
    }
}
