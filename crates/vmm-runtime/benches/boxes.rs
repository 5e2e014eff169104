//! What a box costs over a bare child: `cargo bench -p vmm-runtime --bench boxes`.
//!
//! Each row alternates between the two and compares them pair by pair, since machines drift. The
//! program is its own shim, so a box is three executions of a program where a child is one.

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
    // `cargo test --benches` only wants to see that it runs.
    let short = !std::env::args().any(|arg| arg == "--bench");
    tokio.block_on(run(short));
}

async fn run(short: bool) {
    let home = TempDir::new().expect("a home");
    let runtime = VmmRuntime::open(RuntimeOptions::new(home.path()))
        .await
        .expect("a runtime");
    let (single, churns, boxes) = match short {
        true => (2, 1, 4),
        false => (SINGLE, CHURNS, BOXES),
    };
    println!("| | box | bare spawn + wait | ratio |\n|---|---|---|---|");

    let mut starts = Pairs::default();
    let mut lives = Pairs::default();
    for _ in 0..single {
        let (box_started, box_lived) = box_life(&runtime).await;
        let (child_started, child_lived) = child_life().await;
        starts.add(box_started, child_started);
        lives.add(box_lived, child_lived);
    }
    starts.print("start to running");
    lives.print("created, started, killed, gone");

    let mut churn = Pairs::default();
    for _ in 0..churns {
        let began = Instant::now();
        join_all((0..boxes).map(|_| box_life(&runtime))).await;
        let with_runtime = began.elapsed();
        let began = Instant::now();
        join_all((0..boxes).map(|_| child_life())).await;
        churn.add(with_runtime, began.elapsed());
    }
    churn.print(&format!("the same, {boxes} at once"));
    runtime.shutdown(Duration::from_secs(10)).await;
}

/// How long until it ran, and until it was gone.
async fn box_life(runtime: &VmmRuntime) -> (Duration, Duration) {
    let created = Instant::now();
    let spec = BoxSpec::new(["sleep", "1000"]);
    let id = runtime.create(spec).await.expect("a box").id;
    let asked = Instant::now();
    runtime.start(&id).await.expect("a start");
    let started = asked.elapsed();
    runtime.remove(&id, true).await.expect("a removal");
    (started, created.elapsed())
}

async fn child_life() -> (Duration, Duration) {
    let asked = Instant::now();
    let mut child = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .expect("a child");
    let started = asked.elapsed();
    child.kill().await.expect("the end of the child");
    (started, asked.elapsed())
}

/// Pairs of measurements, of which the medians count.
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
