//! Churns real children through reapers of every kind and compares what the reapers report with
//! what the children were told to do.
//!
//! ```text
//! cargo bench -p shim-reaper --bench chaos -- [--seconds 180] [--seed 1]
//! ```
//!
//! Prints the seed first and a table last. Fails if an exit was lost, stolen from its owner or
//! reported wrongly, or if a zombie was left. A seed fixes what each round does, not how the kernel
//! schedules it.

#![allow(clippy::panic, clippy::unwrap_used)]

mod census;
mod child;
mod population;
mod random;
mod reader;
mod round;
mod tally;

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::round::Round;
use crate::tally::Tally;

fn main() -> ExitCode {
    // Cargo passes `--bench` to a benchmark, and nothing where it is built as a test.
    let args: Vec<String> = env::args().skip(1).collect();
    let seconds = option(&args, "--seconds").unwrap_or(if args.is_empty() { 2 } else { 60 });
    let seed = option(&args, "--seed").unwrap_or_else(random::seed);
    println!("chaos: {seconds} s, seed {seed}");

    let tally = Tally::default();
    let mut random = Random::new(seed);
    let statuses_are_kept = child::kernel_keeps_statuses();
    let mut play = |number| {
        let round = Round::draw(number, statuses_are_kept, &mut random);
        round.run(&mut random.fork(), &tally);
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    // The first rounds make what is made once, and is no leak.
    let warm_up = 10;
    (0..warm_up).for_each(&mut play);
    let (descriptors, resident) = (census::descriptors(), census::resident_kib());
    let mut rounds = warm_up;
    while Instant::now() < deadline {
        play(rounds);
        rounds += 1;
    }
    println!("{}", tally.table());
    println!(
        "{rounds} rounds; descriptors {descriptors} -> {}; resident {resident} KiB -> {} KiB",
        census::descriptors(),
        census::resident_kib()
    );
    if tally.is_clean() {
        ExitCode::SUCCESS
    } else {
        println!("FAILED; run it again with --seed {seed}");
        ExitCode::FAILURE
    }
}

fn option(args: &[String], name: &str) -> Option<u64> {
    let value = args.iter().position(|arg| arg == name)? + 1;
    let value = args.get(value).and_then(|value| value.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} needs a number")))
}
