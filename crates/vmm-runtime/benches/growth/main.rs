//! Shows which costs grow with the number of boxes: `cargo bench -p vmm-runtime --bench growth`.
//!
//! For each number of boxes, three processes run one after the other: one keeps attached boxes and
//! measures; one leaves detached boxes behind; one re-attaches to those and measures. Their parent
//! adopts the detached shims and does not reap them, as pid 1 of a container may do. Shims execute the
//! static program `vmm-shim`, which the benchmark builds.

#![allow(clippy::expect_used, missing_docs, unreachable_pub)]

mod goals;
#[allow(dead_code)]
#[path = "../boxes/host.rs"]
mod host;
mod usage;

use std::env;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{StreamExt, stream};
use goals::{FIRST_REMOVAL, LIFE, REMOVAL, REMOVALS, START, START_AFTER_BURST, THREADS, verdict};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tempfile::TempDir;
use usage::{cpu_time, cpu_time_with_children, resident_kib};
use vmm_protocol::procfs;
use vmm_runtime::{
    BoxChange, BoxId, BoxInfo, BoxSpec, Events, Removal, RuntimeOptions, ShimProgram, VmmRuntime,
};

/// The numbers of boxes, of samples, and of operations at a time.
const COUNTS: [usize; 3] = [10, 1000, 4000];
const SHORT_COUNTS: [usize; 2] = [10, 200];
const SAMPLES: usize = 30;
const SHORT_SAMPLES: usize = 5;
const AT_ONCE: usize = 16;
const BURST: usize = 200;

/// The variable with the path of the program `vmm-shim`. Without it, shims execute this program.
const SHIM_VARIABLE: &str = "GROWTH_SHIM";

/// Named measurements.
type Values = Vec<(String, f64)>;

/// What a measuring process prints: a name and a value per line.
const PREFIX: &str = "growth: ";

fn main() {
    vmm_shim::run_if_shim();
    let args: Vec<_> = env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "attached", home, count, samples] => {
            run(attached(home, number(count), number(samples)))
        }
        [_, "leave", home, count] => run(leave(home, number(count))),
        [_, "reattached", home, samples] => run(reattached(home, number(samples))),
        // `cargo test --benches` only checks that it runs.
        _ if args.iter().any(|arg| arg == "--bench") => {
            print_table(&COUNTS, SAMPLES, host::static_shim().as_deref());
        }
        _ => print_table(&SHORT_COUNTS, SHORT_SAMPLES, None),
    }
}

fn number(arg: &str) -> usize {
    arg.parse().expect("a number")
}

fn run(phase: impl Future<Output = ()>) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("more descriptors");
    let tokio = tokio::runtime::Runtime::new().expect("a tokio runtime");
    tokio.block_on(phase);
}

fn print_table(counts: &[usize], samples: usize, shim: Option<&Path>) {
    set_child_subreaper(true).expect("a subreaper");
    let columns: Vec<_> = counts
        .iter()
        .map(|count| column(*count, samples, shim))
        .collect();
    let program = shim.map_or("this benchmark".into(), |shim| shim.display().to_string());
    let file_system = host::file_system(&env::temp_dir());
    println!("Shim program: {program}. File system: {file_system}.\n");
    println!("| boxes | {} | ratio | target | met |", join(counts.iter()));
    println!("|---|{}", "---|".repeat(counts.len() + 3));
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let values: Vec<_> = columns.iter().map(|column| column[row].1).collect();
        let verdict = verdict(name, &values, &columns[columns.len() - 1]);
        let values = values.iter().map(|value| format!("{value:.3}"));
        println!("| {name} | {} | {verdict} |", join(values));
    }
}

fn join(values: impl Iterator<Item = impl ToString>) -> String {
    values
        .map(|value| value.to_string())
        .collect::<Vec<_>>()
        .join(" | ")
}

/// Runs the three processes for one number of boxes.
fn column(count: usize, samples: usize, shim: Option<&Path>) -> Values {
    let home = TempDir::new().expect("a home");
    let orphans = KillOrphans;
    let home = home.path().to_str().expect("a path");
    let (count, samples) = (count.to_string(), samples.to_string());
    let mut values = measure(&["attached", home, &count, &samples], shim);
    values.extend(measure(&["leave", home, &count], shim));
    values.extend(measure(&["reattached", home, &samples], shim));
    drop(orphans);
    values
}

fn measure(args: &[&str], shim: Option<&Path>) -> Values {
    let mut command = Command::new(env::current_exe().expect("this program"));
    if let Some(shim) = shim {
        command.env(SHIM_VARIABLE, shim);
    }
    let output = command.args(args).stderr(Stdio::inherit()).output();
    let output = output.expect("a process");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{args:?} failed: {text}");
    let lines = text.lines().filter_map(|line| line.strip_prefix(PREFIX));
    lines
        .filter_map(|line| line.rsplit_once('='))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

fn report(name: &str, value: f64) {
    println!("{PREFIX}{name}={value}");
}

/// Kills and reaps the processes that this one has adopted.
struct KillOrphans;

impl Drop for KillOrphans {
    fn drop(&mut self) {
        loop {
            let children = procfs::children(std::process::id()).unwrap_or_default();
            if children.is_empty() {
                return;
            }
            for pid in children {
                let pid = Pid::from_raw(pid.cast_signed());
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
            }
        }
    }
}

async fn attached(home: &str, count: usize, samples: usize) {
    let runtime = open(home).await;
    let memory = resident_kib(std::process::id());
    let start = Instant::now();
    let boxes = start_boxes(&runtime, count, false).await;
    let each = start.elapsed().as_secs_f64() / count as f64;
    report("starts per second, 16 at a time", 1.0 / each);
    let grown = resident_kib(std::process::id()) - memory;
    report("memory of the runtime per box, KiB", grown / count as f64);
    let shims = boxes.iter().take(100).filter_map(|bx| bx.pid);
    report(
        "PSS of a shim, KiB",
        median(shims.filter_map(host::pss_kib)),
    );

    let (mut starts, mut removals, mut lives) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples {
        let cpu = cpu_time_with_children();
        let id = create(&runtime, false).await;
        let start = Instant::now();
        runtime.start(&id).await.expect("start");
        starts.push(milliseconds(start.elapsed()));
        let start = Instant::now();
        runtime.remove(&id, Removal::Force).await.expect("removal");
        removals.push(milliseconds(start.elapsed()));
        lives.push(milliseconds(cpu_time_with_children() - cpu));
    }
    report(START, median(starts));
    report(REMOVAL, median(removals));
    report(LIFE, median(lives));
    measure_bare_children(samples);
    measure_burst(&runtime, samples).await;
    measure_crashes(&runtime, samples, "").await;
    measure_scrapes(&runtime, samples).await;
    let each = remove_all(&runtime).await;
    report(REMOVALS, each);
    runtime.shutdown(Duration::from_secs(60)).await;
}

async fn leave(home: &str, count: usize) {
    let runtime = open(home).await;
    start_boxes(&runtime, count, true).await;
    runtime.shutdown(Duration::from_secs(60)).await;
}

async fn reattached(home: &str, samples: usize) {
    let runtime = open(home).await;
    measure_crashes(&runtime, samples, " beside re-attached boxes").await;
    measure_listings(samples);
    let first = runtime.list().await.into_iter().next().expect("a box").id;
    let start = Instant::now();
    runtime
        .remove(&first, Removal::Force)
        .await
        .expect("a removal");
    report(FIRST_REMOVAL, milliseconds(start.elapsed()));
    let each = remove_all(&runtime).await;
    report("removal of all other re-attached boxes, ms each", each);
    runtime.shutdown(Duration::from_secs(60)).await;
}

/// Removes many boxes at once, and measures the starts that follow.
async fn measure_burst(runtime: &VmmRuntime, samples: usize) {
    let burst = start_boxes(runtime, BURST, false).await;
    let removals = burst
        .iter()
        .map(|bx| runtime.remove(&bx.id, Removal::Force));
    for removed in join_all(removals).await {
        removed.expect("removal");
    }
    let threads = std::fs::read_dir("/proc/self/task").expect("threads");
    let threads = threads.count();
    let mut starts = Vec::new();
    for _ in 0..samples {
        let id = create(runtime, false).await;
        let start = Instant::now();
        runtime.start(&id).await.expect("start");
        starts.push(milliseconds(start.elapsed()));
        runtime.remove(&id, Removal::Force).await.expect("removal");
    }
    report(START_AFTER_BURST, median(starts));
    report(THREADS, threads as f64);
}

/// Measures children of this process without a runtime: those that start with a copy of its descriptors,
/// which the kernel closes when they execute their program, and those that do not.
fn measure_bare_children(samples: usize) {
    for (name, inherit) in [("a copy of", true), ("none of", false)] {
        let mut costs = Vec::new();
        for _ in 0..samples {
            let mut command = shim_reaper::Command::new("/bin/true");
            let cpu = cpu_time_with_children();
            let status = command.inherit_descriptors(inherit).status();
            costs.push(milliseconds(cpu_time_with_children() - cpu));
            assert!(status.expect("a child").success());
        }
        let name = format!("CPU time of a bare child with {name} the descriptors, ms");
        report(&name, median(costs));
    }
}

/// Measures what the kernel takes for the two listings of the children of the process that adopts orphans.
fn measure_listings(samples: usize) {
    let mut costs = Vec::new();
    for _ in 0..samples {
        let cpu = cpu_time();
        for _ in 0..2 {
            procfs::children(parent_id()).expect("the children");
        }
        costs.push(milliseconds(cpu_time() - cpu));
    }
    report(
        "CPU time of two listings of the re-attached shims, ms",
        median(costs),
    );
}

/// Measures the delay until the event of a crash, and the CPU time until all that it has left is
/// cleaned up and removed.
async fn measure_crashes(runtime: &VmmRuntime, samples: usize, beside: &str) {
    let (mut delays, mut costs) = (Vec::new(), Vec::new());
    let mut events = runtime.events();
    for _ in 0..samples {
        let id = create(runtime, false).await;
        let shim = runtime.start(&id).await.expect("start").pid;
        let pid = Pid::from_raw(shim.expect("a shim").cast_signed());
        let (crash, cpu) = (Instant::now(), cpu_time());
        kill(pid, Signal::SIGKILL).expect("a crash");
        wait_for(&mut events, &id, BoxChange::Failed).await;
        delays.push(milliseconds(crash.elapsed()));
        runtime.remove(&id, Removal::Ended).await.expect("removal");
        costs.push(milliseconds(cpu_time() - cpu));
    }
    report(
        &format!("delay of the event of a crash{beside}, ms"),
        median(delays),
    );
    report(&format!("CPU time of a crash{beside}, ms"), median(costs));
}

/// Measures what the metrics of the HTTP API read.
async fn measure_scrapes(runtime: &VmmRuntime, samples: usize) {
    let mut scrapes = Vec::new();
    for _ in 0..samples {
        let start = Instant::now();
        runtime.metrics().await;
        runtime.count_boxes().await;
        scrapes.push(milliseconds(start.elapsed()));
    }
    report("what GET /metrics reads, ms", median(scrapes));
}

async fn wait_for(events: &mut Events, id: &str, change: BoxChange) {
    while let Some(event) = events.next().await {
        if event.change == change && event.info.id == id {
            return;
        }
    }
}

async fn open(home: &str) -> VmmRuntime {
    let mut options = RuntimeOptions::new(Path::new(home));
    let shim = env::var_os(SHIM_VARIABLE).map(ShimProgram::at);
    options.shim_program = shim.map(|shim| shim.expect("a shim program"));
    VmmRuntime::open(options).await.expect("a runtime")
}

async fn create(runtime: &VmmRuntime, detached: bool) -> BoxId {
    let spec = BoxSpec::new(["sleep", "100000"]).detached(detached);
    runtime.create(spec).await.expect("a box").id
}

async fn start_boxes(runtime: &VmmRuntime, count: usize, detached: bool) -> Vec<BoxInfo> {
    let starts = stream::iter(0..count).map(|_| async {
        let id = create(runtime, detached).await;
        runtime.start(&id).await.expect("start")
    });
    starts.buffer_unordered(AT_ONCE).collect().await
}

/// Removes all boxes, and returns the milliseconds that each took.
async fn remove_all(runtime: &VmmRuntime) -> f64 {
    let boxes = runtime.list().await;
    let start = Instant::now();
    let removals = stream::iter(&boxes).map(|bx| runtime.remove(&bx.id, Removal::Force));
    let removals = removals.buffer_unordered(AT_ONCE);
    removals
        .for_each(|removed| async { removed.expect("removal") })
        .await;
    milliseconds(start.elapsed()) / boxes.len() as f64
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
