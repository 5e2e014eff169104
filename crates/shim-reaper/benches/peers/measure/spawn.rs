use std::process::Command;
use std::time::Instant;

use shim_reaper::ShimReaper;
use tokio::process;
use tokio::task::JoinSet;

use crate::column::Column;
use crate::effort::Effort;
use crate::goal::Limit;
use crate::peer::{Ours, TokioAwaited};
use crate::report::Report;
use crate::samples::{MEDIAN, Samples};
use crate::unit::Unit;

const BLOCKS: usize = 20;
const IN_TURN: usize = 25;

const ROUNDS: usize = 11;
const AT_ONCE: usize = 1_000;

pub(super) fn run(effort: &Effort, report: &mut Report) {
    let ours = Ours::new();
    let tokio = TokioAwaited::new();

    let (mut of_ours, mut of_tokio) = (Samples::default(), Samples::default());
    for _ in 0..effort.times(BLOCKS) {
        of_ours.open_block();
        of_tokio.open_block();
        for _ in 0..IN_TURN {
            let start = Instant::now();
            ours.site.run(by_ours(ours.reaper.clone()));
            of_ours.push_time(start.elapsed());

            let start = Instant::now();
            tokio.site.run(by_tokio());
            of_tokio.push_time(start.elapsed());
        }
    }
    set(
        report,
        "Spawn to exit to collected, one after another",
        &of_ours,
        &of_tokio,
    );

    let (mut of_ours, mut of_tokio) = (Samples::default(), Samples::default());
    for _ in 0..effort.times(ROUNDS) {
        let reaper = ours.reaper.clone();
        let start = Instant::now();
        ours.site.run(async move {
            let all: JoinSet<()> = (0..AT_ONCE).map(|_| by_ours(reaper.clone())).collect();
            all.join_all().await;
        });
        of_ours.push_block(start.elapsed().as_secs_f64());

        let start = Instant::now();
        tokio.site.run(async {
            let all: JoinSet<()> = (0..AT_ONCE).map(|_| by_tokio()).collect();
            all.join_all().await;
        });
        of_tokio.push_block(start.elapsed().as_secs_f64());
    }
    set(
        report,
        "Spawn to exit to collected, 1,000 at once",
        &of_ours,
        &of_tokio,
    );
}

fn set(report: &mut Report, label: &str, of_ours: &Samples, of_tokio: &Samples) {
    report
        .row(label, Unit::Time)
        .set(Column::Ours, of_ours.median())
        .set(Column::TokioAwaited, of_tokio.median())
        .goal(
            "tokio awaited",
            of_ours.ratio_to(of_tokio, MEDIAN),
            Limit::AtMost(1.0),
        );
}

async fn by_ours(reaper: ShimReaper) {
    let handle = reaper.spawn(short_lived()).await.unwrap();
    assert!(handle.await.unwrap().success());
}

async fn by_tokio() {
    let mut child = process::Command::from(short_lived()).spawn().unwrap();
    assert!(child.wait().await.unwrap().success());
}

fn short_lived() -> Command {
    Command::new("true")
}
