//! Compares the cost of a box with that of a bare child: `cargo bench -p vmm-runtime --bench
//! boxes`.
//!
//! Each row alternates between the two and compares them in pairs, because machines drift. The
//! program is its own shim, so a box executes three programs and a child one.

#![allow(clippy::expect_used)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tempfile::TempDir;
use tokio::process::Command;
use vmm_runtime::{BoxSpec, RuntimeOptions, VmmRuntime};

const SINGLE: usize = 200;
const CHURNS: usize = 15;
const BOXES: usize = 200;

fn main() {
    vmm_shim::run_if_shim();
    let tokio = tokio::runtime::Runtime::new().expect("a tokio runtime");
    // `cargo test --benches` only checks that it runs.
    let short = !std::env::args().any(|arg| arg == "--bench");
    tokio.block_on(run(short));
}

async fn run(short: bool) {
    let home = TempDir::new().expect("a home");
    let runtime = VmmRuntime::open(RuntimeOptions::new(home.path()))
        .await
        .expect("a runtime");
    let (single, churns, boxes) = if short {
        (2, 1, 4)
    } else {
        (SINGLE, CHURNS, BOXES)
    };
    println!("| | box | bare spawn + wait | ratio |\n|---|---|---|---|");

    let mut starts = Pairs::default();
    let mut lives = Pairs::default();
    for _ in 0..single {
        let (box_start, box_life_time) = box_life(&runtime).await;
        let (child_start, child_life_time) = child_life().await;
        starts.add(box_start, child_start);
        lives.add(box_life_time, child_life_time);
    }
    starts.print("start to running");
    lives.print("created, started, killed, gone");

    let mut churn = Pairs::default();
    for _ in 0..churns {
        let start = Instant::now();
        join_all((0..boxes).map(|_| box_life(&runtime))).await;
        let with_runtime = start.elapsed();
        let start = Instant::now();
        join_all((0..boxes).map(|_| child_life())).await;
        churn.add(with_runtime, start.elapsed());
    }
    churn.print(&format!("the same, {boxes} at once"));
    runtime.shutdown(Duration::from_secs(10)).await;
}

/// Returns the time until a box was running and the time until it was removed.
async fn box_life(runtime: &VmmRuntime) -> (Duration, Duration) {
    let creation = Instant::now();
    let spec = BoxSpec::new(["sleep", "1000"]);
    let id = runtime.create(spec).await.expect("a box").id;
    let start = Instant::now();
    runtime.start(&id).await.expect("a start");
    let started = start.elapsed();
    runtime.remove(&id, true).await.expect("a removal");
    (started, creation.elapsed())
}

/// Returns the time until a child was spawned and the time until it was reaped.
async fn child_life() -> (Duration, Duration) {
    let start = Instant::now();
    let mut child = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .expect("a child");
    let started = start.elapsed();
    child.kill().await.expect("the end of the child");
    (started, start.elapsed())
}

/// Pairs of measurements, compared by their medians.
#[derive(Default)]
struct Pairs(Vec<(Duration, Duration)>);

impl Pairs {
    fn add(&mut self, with_runtime: Duration, bare: Duration) {
        self.0.push((with_runtime, bare));
    }

    fn print(&self, what: &str) {
        let milliseconds = |duration: &Duration| duration.as_secs_f64() * 1e3;
        let boxes = median(self.0.iter().map(|(a, _)| milliseconds(a)));
        let bare = median(self.0.iter().map(|(_, b)| milliseconds(b)));
        let ratio = median(
            self.0
                .iter()
                .map(|(a, b)| milliseconds(a) / milliseconds(b)),
        );
        println!("| {what} | {boxes:.2} ms | {bare:.2} ms | {ratio:.1} |");
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
