//! Kills containerd and shims while containers run, with this runtime and with runc, and prints what is lost:
//! `cargo test -p containerd-shim-vmm --test fault_table -- --long --pods 500`.
//!
//! Without arguments, a part of the faults runs, with few exits and pods. `--long` runs every fault, and 200
//! exits at once; `--pods` is the number of pods that run one after another, and `--only` is a part of the name of
//! a fault. The program fails if this runtime
//! loses an exit, reports a false exit code, or leaves anything. It does not judge runc.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod leftovers;
mod losses;
mod scenarios;

use std::process::ExitCode;
use std::time::Instant;

use common::Containerd;
use fixture::{Fixture, Runtime};
use losses::Row;
use scenarios::{Fault, State, Victim};

/// The kills of the short form.
const SHORT: [(Victim, State); 5] = [
    (Victim::Containerd, State::Running),
    (Victim::Shim, State::Starting),
    (Victim::Shim, State::Running),
    (Victim::Shim, State::Unreported),
    (Victim::Both, State::Running),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_long = args.iter().any(|arg| arg == "--long");
    let number = |name: &str| -> Option<usize> {
        let value = args.iter().skip_while(|arg| *arg != name).nth(1)?;
        Some(value.parse().expect("a number"))
    };
    let pods = number("--pods").unwrap_or(if is_long { 500 } else { 3 });
    let exits = number("--exits").unwrap_or(if is_long { 200 } else { 20 });
    let only = args.iter().skip_while(|arg| *arg != "--only").nth(1);
    let is_selected = |fault: &str| only.is_none_or(|part| fault.contains(part.as_str()));
    let Some(containerd) = Containerd::start() else {
        return ExitCode::SUCCESS;
    };
    let mut fixture = Fixture::new(containerd);
    println!("{}", Row::HEADER);
    let mut is_good = true;
    for runtime in Runtime::ALL {
        let all = Victim::ALL
            .into_iter()
            .flat_map(|victim| State::ALL.map(|state| (victim, state)));
        let kills = all.filter(|kill| is_long || SHORT.contains(kill));
        let kills = kills.map(|(victim, state)| Fault::Kill(victim, state));
        let others = [Fault::Stall { exits }, Fault::Sequence { pods }];
        for fault in kills.chain(others) {
            if is_selected(&fault.to_string()) {
                let start = Instant::now();
                let row = fault.run(&mut fixture, runtime);
                println!("{row} {:.1} s |", start.elapsed().as_secs_f32());
                is_good &= runtime == Runtime::Runc || row.is_good(fault.may_repeat());
            }
        }
    }
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
