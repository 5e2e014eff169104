//! Runs the reaper on a simulated kernel, in random histories that a seed determines.
//!
//! ```text
//! cargo bench -p shim-reaper --features simulation --bench simulation -- [--steps 1000000] [--seed 1] [--io-uring]
//! ```
//!
//! With `--io-uring`, the kernel reaps the shims. Prints the seed first, and at the end how many histories
//! could have broken each promise. If a history violates a promise, prints the shortest such history that it
//! finds, and the command that performs it again.
//!
//! With `--switch-off`, switches off each mechanism in turn, and prints which history fails without it, and
//! after how long. Fails if all histories succeed without a mechanism. With `--switch-off NAME`, as `SpotCheck`,
//! switches off one of them, and prints the history.

#![allow(clippy::panic)]

mod progress;

use std::env;
use std::panic;
use std::process::ExitCode;
use std::time::Instant;

use progress::Progress;
use shim_reaper::simulation::{Coverage, Mechanism, Options, Threat, Violation, simulate};

/// Makes the reaper use io_uring.
const IO_URING: &str = "--io-uring";

const SWITCH_OFF: &str = "--switch-off";

fn main() -> ExitCode {
    // Cargo passes `--bench` to a benchmark, and no argument when it runs it as a test.
    let args: Vec<String> = env::args().skip(1).collect();
    let default = if args.is_empty() { 20_000 } else { 1_000_000 };
    let steps = number(&args, "--steps").unwrap_or(default);
    let seed = number(&args, "--seed").unwrap_or_else(|| fastrand::u64(..1 << 32));
    if args.iter().any(|arg| arg == SWITCH_OFF) {
        return match value(&args, SWITCH_OFF).and_then(mechanism) {
            Some(mechanism) => perform(seed, steps, without(mechanism)),
            None => switch_off_each(seed, steps),
        };
    }
    let options = Options {
        io_uring: args.iter().any(|arg| arg == IO_URING),
        ..Options::default()
    };
    perform(seed, steps, options)
}

fn without(mechanism: Mechanism) -> Options {
    Options {
        io_uring: mechanism.needs_io_uring(),
        switched_off: Some(mechanism),
    }
}

fn perform(seed: u64, steps: u64, options: Options) -> ExitCode {
    let mut mode = String::new();
    if let Some(mechanism) = options.switched_off {
        mode += &format!(" {SWITCH_OFF} {mechanism:?}");
    } else if options.io_uring {
        mode += &format!(" {IO_URING}");
    }
    println!("simulation: {steps} steps, seed {seed}{mode}");

    let mut progress = Progress::new(steps);
    let result = simulate(seed, steps, options, |done| progress.show(done.steps));
    progress.end();
    let time = progress.start.elapsed();
    match result {
        Ok(done) => {
            println!("{} steps in {time:.1?}, no violation", done.steps);
            print_coverage(&done);
            ExitCode::SUCCESS
        }
        Err(violation) => {
            let Violation { seed, before, .. } = violation;
            // A history that panics is performed many times.
            panic::set_hook(Box::new(|_| {}));
            println!("{}", violation.minimal_history());
            println!(
                "FAILED after {} steps and {time:.1?}; perform it again with --seed {seed} --steps 1{mode}",
                before.steps
            );
            ExitCode::FAILURE
        }
    }
}

fn print_coverage(done: &Coverage) {
    println!("\n| promise | histories of {} |\n|---|---|", done.histories);
    for threat in Threat::ALL {
        println!("| {threat} | {} |", done.count(threat));
    }
    println!("| nothing grows | {} |", done.histories);
}

fn switch_off_each(seed: u64, steps: u64) -> ExitCode {
    println!("simulation: up to {steps} steps, seed {seed} {SWITCH_OFF}\n");
    println!("| switched off | name | seed that fails | histories before it | steps | seconds |");
    println!("|---|---|---|---|---|---|");
    let mut code = ExitCode::SUCCESS;
    for mechanism in Mechanism::ALL {
        let start = Instant::now();
        let mut progress = Progress::new(steps);
        let result = simulate(seed, steps, without(mechanism), |done| {
            progress.show(done.steps);
        });
        progress.end();
        let time = start.elapsed().as_secs_f64();
        match result {
            Err(Violation { seed, before, .. }) => println!(
                "| {mechanism} | `{mechanism:?}` | {seed} | {} | {} | {time:.2} |",
                before.histories, before.steps
            ),
            Ok(done) => {
                println!(
                    "| {mechanism} | `{mechanism:?}` | **none** | {} | {} | {time:.2} |",
                    done.histories, done.steps
                );
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn mechanism(name: &str) -> Option<Mechanism> {
    if name.starts_with("--") {
        return None;
    }
    let mut all = Mechanism::ALL.into_iter();
    let found = all.find(|mechanism| format!("{mechanism:?}") == name);
    Some(found.unwrap_or_else(|| panic!("{name} is not one of {:?}", Mechanism::ALL)))
}

/// Returns what follows an argument.
fn value<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let value = args.iter().position(|arg| arg == name)? + 1;
    args.get(value).map(String::as_str)
}

fn number(args: &[String], name: &str) -> Option<u64> {
    args.iter().find(|arg| *arg == name)?;
    let value = value(args, name).and_then(|value| value.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} needs a number")))
}
