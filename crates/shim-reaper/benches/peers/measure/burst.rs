use std::thread;
use std::time::Instant;

use super::SETTLE;
use crate::peer::{Ours, Peer, ThreadPerChild, TokioAwaited};
use crate::population::Population;
use crate::report::{Limit, Report, Unit};
use crate::samples::{Effort, MEDIAN, Samples};

const CHILDREN: usize = 4_000;
const ROUNDS: usize = 7;

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let ours = Ours::new();
    let tokio = TokioAwaited::new();
    let peers: [&dyn Peer; 3] = [&ours, &ThreadPerChild, &tokio];
    let mut samples: [Samples; 3] = Default::default();
    for _ in 0..effort.times(ROUNDS) {
        for (peer, samples) in peers.iter().zip(&mut samples) {
            let mut population = Population::new(*peer, CHILDREN);
            thread::sleep(SETTLE);
            let start = Instant::now();
            population.kill_all();
            samples.push_block(start.elapsed().as_secs_f64());
        }
    }
    let row = report.row("Burst of 4,000, until all are reaped", Unit::Time);
    for (peer, samples) in peers.iter().zip(&samples) {
        row.set(peer.column(), samples.median());
    }
    let [ours, floor, _] = &samples;
    row.goal(
        "the floor",
        ours.ratio_to(floor, MEDIAN),
        Limit::AtMost(1.05),
    );
}
