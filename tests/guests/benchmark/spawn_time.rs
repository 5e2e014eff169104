//! Runs in the guest: prints how many microseconds a command takes, `spawn-time PROGRAM [ARG]...`.
//!
//! Compiled for the guest by the benchmark, with nothing but std, whose `Command` is `vfork(2)` and
//! `execve(2)` here. So nothing that runs a command in the guest is faster.

use std::env;
use std::process::{Command, exit};
use std::time::Instant;

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let Some((program, arguments)) = arguments.split_first() else {
        eprintln!("usage: spawn-time PROGRAM [ARG]...");
        exit(2);
    };
    let mut command = Command::new(program);
    command.args(arguments);
    let mut run = || {
        let start = Instant::now();
        let status = command.status().expect("the program");
        assert!(status.success(), "{status}");
        start.elapsed()
    };
    // The first run also translates the code of this program.
    run();
    println!("{}", run().as_micros());
}
