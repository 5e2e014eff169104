//! Kills the runtime, or a shim, at each system call that changes something while a box is created,
//! started, stopped, removed or recovered, and makes each call on a file fail once. After every fault
//! the home is opened again: each box is in a state that its history allows, and nothing is left. What
//! has succeeded must be on disk.
//!
//! By default it tests a sample of the points, which a printed seed selects. `--all` tests all,
//! `--point` one. Other arguments select the series whose names contain them.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../crates/vmm-runtime/benches/chaos/leftovers.rs"]
#[allow(dead_code)]
mod leftovers;

mod calls;
mod durability;
mod oracle;
mod point;
mod subject;
mod supervisor;

use std::env;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::boxes::{options, shim_program};
use common::eventually_blocking;
use nix::sys::signal::Signal;
use oracle::History;
use point::{Operation, Point, Series};
use supervisor::{Seen, Supervisor};
use vmm_protocol::panic_message;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{RuntimeOptions, ShimProgram};

/// The sample has one of so many points.
const SAMPLED: usize = 10;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let at = |home: &str, shim: &str| {
        RuntimeOptions::new(home).shim_program(ShimProgram::at(shim).unwrap())
    };
    let failures = match args[..] {
        ["--leave-boxes", home, shim] => subject::leave_boxes(at(home, shim)),
        ["--subject", home, shim, series] => {
            subject::run(at(home, shim), series.parse().unwrap());
            0
        }
        ["--point", point] => usize::from(!test(point.parse().unwrap()).passed),
        ["--all", ref filters @ ..] => test_all(filters, 1, 0),
        ["--seed", seed, ref filters @ ..] => test_all(filters, SAMPLED, seed.parse().unwrap()),
        ref filters => test_all(filters, SAMPLED, fastrand::usize(..SAMPLED)),
    };
    ExitCode::from(u8::from(failures > 0))
}

/// Tests one of `step` points of each selected series. Returns the number of failures.
fn test_all(filters: &[&str], step: usize, seed: usize) -> usize {
    // `cargo test` passes options of the test harness.
    let filters: Vec<_> = filters.iter().filter(|f| !f.starts_with('-')).collect();
    let is_selected = |series: &Series| {
        let name = format!("crash_points {series}");
        filters.is_empty() || filters.iter().any(|filter| name.contains(**filter))
    };
    let selected: Vec<_> = Series::all().filter(is_selected).collect();
    // The message of a panic is part of the failure.
    panic::set_hook(Box::new(|_| {}));
    println!("one of {step} points, --seed {seed}");
    let (next, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(series) = selected.get(index)
        {
            let first = 1 + (seed + index) % step;
            // The run after the last point has no fault.
            let points = (first..).step_by(step).take_while(|number| {
                let tested = test(series.at(*number));
                failures.fetch_add(usize::from(!tested.passed), Ordering::Relaxed);
                tested.reached
            });
            let points = points.count();
            println!("{index} of {}: {series}, {points} points", selected.len());
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    failures.into_inner()
}

struct Tested {
    passed: bool,
    /// Whether the operation has so many calls.
    reached: bool,
}

/// Tests a point, and prints how to reproduce a failure.
fn test(point: Point) -> Tested {
    let mut seen = Seen::default();
    let home = PerTestBoxHome::new();
    let tested = catch_panic(|| try_point(&home, point, &mut seen));
    // Panics if processes are left, which a failure explains.
    let dropped = catch_panic(|| {
        drop(home);
        Ok(())
    });
    let result = tested.and(dropped);
    if let Err(message) = &result {
        let call = seen.call.as_deref().unwrap_or("no call");
        println!(
            "FAILED {point}, at {call}: {message}\n\
             reproduce: cargo test --test crash_points -- --point {point}"
        );
    }
    Tested {
        passed: result.is_ok(),
        reached: seen.call.is_some(),
    }
}

/// Turns a panic into an error.
fn catch_panic(f: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(f));
    result.unwrap_or_else(|panic| Err(panic_message(&*panic).to_owned()))
}

fn try_point(home: &PerTestBoxHome, point: Point, seen: &mut Seen) -> Result<(), String> {
    if point.series.operation == Operation::Recover {
        let output = program(home.path(), "--leave-boxes").output().unwrap();
        let shim = String::from_utf8_lossy(&output.stdout).trim().parse();
        let shim = shim.map_err(|error| format!("{error}: {output:?}"))?;
        common::kill(shim, Signal::SIGKILL);
    }
    let mut subject = program(home.path(), "--subject")
        .arg(point.series.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let supervisor = Supervisor::start(&subject, point);
    let mut stdin = subject.stdin.take().unwrap();
    stdin.write_all(b"\n").unwrap();
    let history = History::of(subject, point, &supervisor);
    *seen = supervisor.seen();
    let mut tokio = tokio::runtime::Builder::new_current_thread();
    let tokio = tokio.enable_all().build().unwrap();
    tokio.block_on(history?.judge(home, options(home.path())))?;
    eventually_blocking("all processes of the subject end", || supervisor.is_over());
    Ok(())
}

/// Returns a command that runs this program in another role.
fn program(home: &Path, role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.arg(role).arg(home).arg(shim_program());
    command
}
