//! Runs many real children under randomly configured reapers and compares the reported exits with
//! the intended ones.
//!
//! ```text
//! cargo bench -p shim-reaper --bench chaos -- [--seconds 60 | --lifecycles 100000] [--seed 1] [--io-uring]
//! ```
//!
//! With `--io-uring`, the kernel reaps the shims of a dedicated thread. Runs for a time, or until that many
//! children have ended. Prints the seed first and a table last.
//!
//! Fails if an exit was lost, stolen from its owner or reported wrongly, if a zombie, a running child or a
//! descriptor was left, or if the resident memory has grown by more than [`MAX_GROWTH_KIB`]. A seed
//! determines what each round does, but not how the kernel schedules it.

#![allow(clippy::panic, clippy::unwrap_used)]

mod census;
mod check;
mod child;
mod population;
mod random;
#[allow(dead_code, unreachable_pub, unsafe_code)]
#[path = "../../tests/common/recycled_pid.rs"]
mod recycled_pid;
mod round;
mod tally;
mod trouble;

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::round::Round;
use crate::tally::Tally;

/// Makes the reapers use io_uring.
const IO_URING: &str = "--io-uring";

/// The number of rounds before the first count of descriptors and memory.
const WARM_UP_ROUNDS: u64 = 10;

/// By how much the resident memory may grow. The heaps of threads that have ended are not a leak.
const MAX_GROWTH_KIB: u64 = 16 << 10;

fn main() -> ExitCode {
    // Cargo passes `--bench` to a benchmark, and no argument when it runs it as a test.
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(pid) = option(&args, child::TRACE_OPTION) {
        return child::trace(pid);
    }
    let limit = match option(&args, "--lifecycles") {
        Some(lifecycles) => Limit::Lifecycles(lifecycles),
        None => {
            let seconds =
                option(&args, "--seconds").unwrap_or(if args.is_empty() { 2 } else { 60 });
            Limit::Time(Duration::from_secs(seconds))
        }
    };
    let seed = option(&args, "--seed").unwrap_or_else(random::seed);
    let io_uring = args.iter().any(|arg| arg == IO_URING);
    let mode = if io_uring { IO_URING } else { "" };
    println!("chaos: {limit:?}, seed {seed} {mode}");
    trouble::hide_injected_panics();
    trouble::reset_dispositions();

    let tally = Tally::default();
    let mut random = Random::new(seed);
    let keeps_statuses = child::kernel_keeps_statuses();
    let mut run_round = |number| {
        let round = Round::random(number, keeps_statuses, io_uring, &mut random);
        round.run(&mut random.fork(), &tally);
    };
    let start = Instant::now();
    // The first rounds allocate what the process keeps, which is not a leak.
    (0..WARM_UP_ROUNDS).for_each(&mut run_round);
    let (descriptors, resident) = (census::descriptors(), census::resident_kib());
    let mut rounds = WARM_UP_ROUNDS;
    while !limit.is_reached(start.elapsed(), tally.lifecycles()) {
        run_round(rounds);
        rounds += 1;
    }
    // The threads of the last round may still close their descriptors.
    let has_leaked = !census::wait_until(|| census::descriptors() <= descriptors);
    println!("{}", tally.table());
    println!(
        "{rounds} rounds in {:.0?}; descriptors {descriptors} -> {}; resident {resident} KiB -> {} KiB",
        start.elapsed(),
        census::descriptors(),
        census::resident_kib()
    );
    let has_grown = census::resident_kib() > resident + MAX_GROWTH_KIB;
    if tally.is_clean() && !has_leaked && !has_grown {
        ExitCode::SUCCESS
    } else {
        println!("FAILED; run it again with --seed {seed} {mode}");
        ExitCode::FAILURE
    }
}

/// When the program ends.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Time(Duration),
    Lifecycles(u64),
}

impl Limit {
    fn is_reached(self, time: Duration, lifecycles: u64) -> bool {
        match self {
            Self::Time(limit) => time >= limit,
            Self::Lifecycles(limit) => lifecycles >= limit,
        }
    }
}

fn option(args: &[String], name: &str) -> Option<u64> {
    let value = args.iter().position(|arg| arg == name)? + 1;
    let value = args.get(value).and_then(|value| value.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} needs a number")))
}
