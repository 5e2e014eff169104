use std::thread;
use std::time::Duration;

use crate::ALLOCATOR;
use crate::peer::{Ours, Peer, TokioAwaited};
use crate::population::Population;
use crate::report::{Column, Limit, Report, Unit};
use crate::samples::Effort;

const SHIMS: usize = 10_000;
const MAX_BYTES: f64 = 250.0;

/// The time in which the sweeps admit the new shims.
const SEVERAL_SWEEPS: Duration = Duration::from_secs(1);

pub(super) fn run(_: &Effort, report: &mut Report) {
    let ours = per_child(&Ours::new());
    let io_uring = per_child(&Ours::io_uring());
    let tokio = per_child(&TokioAwaited::new());
    report
        .row("Heap per live shim, of 10,000", Unit::Bytes)
        .set(Column::Ours, ours)
        .set(Column::IoUring, io_uring)
        .set(Column::TokioAwaited, tokio)
        .goal("250 bytes", ours / MAX_BYTES, Limit::AtMost(1.0))
        .goal(
            "250 bytes, io_uring",
            io_uring / MAX_BYTES,
            Limit::AtMost(1.0),
        );
}

fn per_child(peer: &dyn Peer) -> f64 {
    let mut population = Population::new(peer, 0);
    population.reserve(SHIMS);
    let before = ALLOCATOR.live();
    population.grow_to(SHIMS);
    thread::sleep(SEVERAL_SWEEPS);
    (ALLOCATOR.live() - before) as f64 / SHIMS as f64
}
