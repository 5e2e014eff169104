use std::time::Instant;

use shim_reaper::{Command, ShimReaper};
use tokio::process;
use tokio::task::JoinSet;

use crate::peer::{Ours, TokioAwaited};
use crate::report::{Column, Limit, Report, Unit};
use crate::samples::{Effort, MEDIAN, Samples};

/// Ends at once.
const PROGRAM: &str = "true";

const BLOCKS: usize = 20;
const PER_BLOCK: usize = 25;

const ROUNDS: usize = 11;
const AT_ONCE: usize = 1_000;

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let ours = Ours::new();
    let tokio = TokioAwaited::new();

    let (mut our_samples, mut tokio_samples) = (Samples::default(), Samples::default());
    for _ in 0..effort.times(BLOCKS) {
        our_samples.open_block();
        tokio_samples.open_block();
        for _ in 0..PER_BLOCK {
            let start = Instant::now();
            ours.runtime.run(run_ours(ours.reaper.clone()));
            our_samples.push_time(start.elapsed());

            let start = Instant::now();
            tokio.runtime.run(run_tokio());
            tokio_samples.push_time(start.elapsed());
        }
    }
    set(
        report,
        "Spawn to exit to reaped, one after another",
        &our_samples,
        &tokio_samples,
        0.96,
    );

    let (mut our_samples, mut tokio_samples) = (Samples::default(), Samples::default());
    for _ in 0..effort.times(ROUNDS) {
        let reaper = ours.reaper.clone();
        let start = Instant::now();
        ours.runtime.run(async move {
            let all: JoinSet<()> = (0..AT_ONCE).map(|_| run_ours(reaper.clone())).collect();
            all.join_all().await;
        });
        our_samples.push_block(start.elapsed().as_secs_f64());

        let start = Instant::now();
        tokio.runtime.run(async {
            let all: JoinSet<()> = (0..AT_ONCE).map(|_| run_tokio()).collect();
            all.join_all().await;
        });
        tokio_samples.push_block(start.elapsed().as_secs_f64());
    }
    set(
        report,
        "Spawn to exit to reaped, 1,000 at once",
        &our_samples,
        &tokio_samples,
        0.9,
    );
}

fn set(
    report: &mut Report,
    label: &str,
    our_samples: &Samples,
    tokio_samples: &Samples,
    limit: f64,
) {
    report
        .row(label, Unit::Time)
        .set(Column::Ours, our_samples.median())
        .set(Column::TokioAwaited, tokio_samples.median())
        .goal(
            "tokio awaited",
            our_samples.ratio_to(tokio_samples, MEDIAN),
            Limit::AtMost(limit),
        );
}

async fn run_ours(reaper: ShimReaper) {
    let handle = reaper.spawn(Command::new(PROGRAM)).unwrap();
    assert!(handle.await.unwrap().success());
}

async fn run_tokio() {
    let mut child = process::Command::new(PROGRAM).spawn().unwrap();
    assert!(child.wait().await.unwrap().success());
}
