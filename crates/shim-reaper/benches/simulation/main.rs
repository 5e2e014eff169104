//! Runs the reaper on a simulated kernel, in random histories that a seed determines.
//!
//! ```text
//! cargo bench -p shim-reaper --features simulation --bench simulation -- [--steps 1000000] [--seed 1] [--io-uring]
//! ```
//!
//! With `--io-uring`, the kernel reaps the shims. Prints the seed first. If a history violates a promise, prints the shortest such history that it
//! finds, and the command that performs it again.

#![allow(clippy::panic)]

use std::env;
use std::io::{IsTerminal, Write, stderr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use shim_reaper::simulation::simulate;

/// Makes the reaper use io_uring.
const IO_URING: &str = "--io-uring";

fn main() -> ExitCode {
    // Cargo passes `--bench` to a benchmark, and no argument when it runs it as a test.
    let args: Vec<String> = env::args().skip(1).collect();
    let default = if args.is_empty() { 20_000 } else { 1_000_000 };
    let steps = option(&args, "--steps").unwrap_or(default);
    let seed = option(&args, "--seed").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let io_uring = args.iter().any(|arg| arg == IO_URING);
    let mode = if io_uring { IO_URING } else { "" };
    println!("simulation: {steps} steps, seed {seed} {mode}");

    let mut progress = Progress::new(steps);
    let result = simulate(seed, steps, io_uring, |done| progress.show(done));
    progress.end();
    match result {
        Ok(done) => {
            println!(
                "{done} steps in {:.1?}, no violation",
                progress.start.elapsed()
            );
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("{}", violation.history);
            println!(
                "FAILED after {} steps and {:.1?}; perform it again with --seed {} --steps 1 {mode}",
                progress.done,
                progress.start.elapsed(),
                violation.seed
            );
            ExitCode::FAILURE
        }
    }
}

/// A progress bar on a terminal.
struct Progress {
    steps: u64,
    done: u64,
    start: Instant,
    shown: Option<Instant>,
}

impl Progress {
    const WIDTH: usize = 40;

    fn new(steps: u64) -> Self {
        Self {
            steps,
            done: 0,
            start: Instant::now(),
            shown: None,
        }
    }

    fn show(&mut self, done: u64) {
        self.done = done;
        let is_due = |shown: Instant| shown.elapsed() >= Duration::from_millis(100);
        if !stderr().is_terminal() || !self.shown.is_none_or(is_due) {
            return;
        }
        self.shown = Some(Instant::now());
        let part = (done as f64 / self.steps as f64).min(1.0);
        let bar = "#".repeat((part * Self::WIDTH as f64) as usize);
        let _ = write!(
            stderr(),
            "\r[{bar:<width$}] {:3.0}% {done}/{}",
            part * 100.0,
            self.steps,
            width = Self::WIDTH
        );
    }

    fn end(&self) {
        if self.shown.is_some() {
            let _ = writeln!(stderr());
        }
    }
}

fn option(args: &[String], name: &str) -> Option<u64> {
    let value = args.iter().position(|arg| arg == name)? + 1;
    let value = args.get(value).and_then(|value| value.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} needs a number")))
}
