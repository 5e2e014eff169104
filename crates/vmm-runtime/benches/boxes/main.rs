//! Compares the cost of a box with that of a bare child: `cargo bench -p vmm-runtime --bench
//! boxes`.
//!
//! Each row alternates between the two and compares them in pairs, because machines drift. Shims
//! execute the static program `vmm-shim`, which the benchmark builds. A second table has the same
//! payload under other supervisors, where they are installed.

#![allow(clippy::expect_used, missing_docs, unreachable_pub)]

mod host;
mod pairs;
mod peers;

use std::path::Path;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use pairs::{Pairs, median, met};
use tempfile::TempDir;
use tokio::process::Command;
use vmm_protocol::procfs::Stat;
use vmm_runtime::{BoxSpec, Removal, RuntimeOptions, ShimProgram, VmmRuntime};

const SINGLE: usize = 200;
const CHURNS: usize = 15;
const BOXES: usize = 200;
const AT_REST: usize = 300;
const WARM: usize = 2;
const MAX_PSS_KIB: f64 = 100.0;
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

fn main() {
    vmm_shim::run_if_shim();
    let tokio = tokio::runtime::Runtime::new().expect("a tokio runtime");
    // `cargo test --benches` only checks that it runs.
    let short = !std::env::args().any(|arg| arg == "--bench");
    // Only the second table.
    let only_peers = std::env::args().any(|arg| arg == "--peers");
    tokio.block_on(async {
        let shim = if short { None } else { host::static_shim() };
        if !only_peers {
            run(short, shim.as_deref()).await;
        }
        if let Some(shim) = shim {
            peers::print_table(&shim).await;
        }
    });
}

async fn run(short: bool, shim: Option<&Path>) {
    let home = TempDir::new().expect("a home");
    let (single, churns, boxes, at_rest) = if short {
        (2, 1, 4, 3)
    } else {
        (SINGLE, CHURNS, BOXES, AT_REST)
    };
    let program = shim.map_or("this benchmark".into(), |shim| shim.display().to_string());
    let file_system = host::file_system(home.path());
    println!("Shim program: {program}. File system: {file_system}.\n");
    println!("| | box | bare spawn + wait | ratio | target | met |\n|---|---|---|---|---|---|");

    let open = |warm: usize| {
        let mut options = RuntimeOptions::new(home.path()).warm_shims(warm);
        options.shim_program = shim.map(|shim| ShimProgram::at(shim).expect("a shim program"));
        async { VmmRuntime::open(options).await.expect("a runtime") }
    };
    // Thousands of removals make later creations slow on some file systems: single boxes come first.
    for warm in [0, WARM] {
        let runtime = open(warm).await;
        compare_single(&runtime, warm, single).await;
        runtime.shutdown(SHUTDOWN_GRACE).await;
    }
    for warm in [0, WARM] {
        let runtime = open(warm).await;
        compare_many(&runtime, warm, churns, boxes).await;
        runtime.shutdown(SHUTDOWN_GRACE).await;
    }
    let runtime = open(0).await;
    print_memory(&runtime, at_rest, shim).await;
    runtime.shutdown(SHUTDOWN_GRACE).await;
}

/// Compares one box with one child, again and again.
async fn compare_single(runtime: &VmmRuntime, warm: usize, count: usize) {
    let mut starts = Pairs::default();
    let mut lives = Pairs::default();
    for _ in 0..count {
        while runtime.metrics().await.warm_shims < warm as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (box_start, box_life_time) = box_life(runtime).await;
        let (child_start, child_life_time) = child_life().await;
        starts.add(box_start, child_start);
        lives.add(box_life_time, child_life_time);
    }
    let [start_target, life_target] = if warm > 0 {
        [Some(3.0), None]
    } else {
        [Some(8.0), Some(11.0)]
    };
    let kind = kind(warm);
    starts.print(&format!("start to running, {kind}"), start_target);
    lives.print(
        &format!("created, started, killed, gone, {kind}"),
        life_target,
    );
}

/// Compares a number of boxes at once with the same number of children.
async fn compare_many(runtime: &VmmRuntime, warm: usize, churns: usize, boxes: usize) {
    let mut churn = Pairs::default();
    let mut cpu = [0.0; 2];
    for _ in 0..churns {
        let (start, used) = (Instant::now(), cpu_milliseconds());
        join_all((0..boxes).map(|_| box_life(runtime))).await;
        let with_runtime = start.elapsed();
        let (start, used_by_boxes) = (Instant::now(), cpu_milliseconds());
        join_all((0..boxes).map(|_| child_life())).await;
        churn.add(with_runtime, start.elapsed());
        cpu[0] += used_by_boxes - used;
        cpu[1] += cpu_milliseconds() - used_by_boxes;
    }
    let kind = kind(warm);
    churn.print(&format!("the same, {boxes} at once, {kind}"), Some(6.0));
    let [of_box, of_child] = cpu.map(|cpu| cpu / (churns * boxes) as f64);
    let ratio = of_box / of_child;
    println!("| CPU per life, {kind} | {of_box:.2} ms | {of_child:.2} ms | {ratio:.1} | | |");
}

fn kind(warm: usize) -> &'static str {
    if warm > 0 { "warm" } else { "cold" }
}

/// Prints the memory of shims and of idle payloads while this number of boxes runs.
async fn print_memory(runtime: &VmmRuntime, boxes: usize, idle: Option<&Path>) {
    let command = match idle {
        Some(idle) => vec![idle.to_string_lossy().into_owned(), "idle".to_owned()],
        None => vec!["sleep".to_owned(), "1000".to_owned()],
    };
    let started = join_all((0..boxes).map(|_| async {
        let spec = BoxSpec::new(command.clone());
        let id = runtime.create(spec).await.expect("a box").id;
        runtime.start(&id).await.expect("a start")
    }))
    .await;
    let shims = median(started.iter().filter_map(|bx| host::pss_kib(bx.pid?)));
    let payloads = median(
        started
            .iter()
            .filter_map(|bx| host::pss_kib(bx.payload_pid?)),
    );
    let met = met(shims, MAX_PSS_KIB);
    println!("| PSS of a shim, {boxes} boxes | {shims:.0} KiB | | | {MAX_PSS_KIB} KiB | {met} |");
    println!("| PSS of an idle payload | {payloads:.0} KiB | | | | |");
    join_all(
        started
            .iter()
            .map(|bx| runtime.remove(&bx.id, Removal::Force)),
    )
    .await;
}

/// Returns the time until a box was running and the time until it was removed.
async fn box_life(runtime: &VmmRuntime) -> (Duration, Duration) {
    let creation = Instant::now();
    let spec = BoxSpec::new(["sleep", "1000"]);
    let id = runtime.create(spec).await.expect("a box").id;
    let start = Instant::now();
    runtime.start(&id).await.expect("a start");
    let started = start.elapsed();
    runtime
        .remove(&id, Removal::Force)
        .await
        .expect("a removal");
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

/// Returns the CPU time of this process and of all processes that it or its shims have reaped, in
/// milliseconds.
fn cpu_milliseconds() -> f64 {
    let stat = Stat::of(process::id()).ok().flatten();
    stat.map_or(0.0, |stat| stat.cpu_ticks as f64) * 1e3
        / rustix::param::clock_ticks_per_second() as f64
}
