//! Compares the spawn of a child with `std::process::Command`, in pairs.
//!
//! `cargo bench -p pidfd-spawn --bench spawn` prints medians, and medians of the ratios of each pair.
//! With `-- --quick` it makes a tenth of the spawns.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::env;
use std::hint;
use std::os::unix::process::CommandExt;
use std::process;
use std::time::{Duration, Instant};

const PROGRAM: &str = "/bin/true";
const LARGE: usize = 2 << 30;
const PAGE: usize = 4096;

/// What the child has that its parent does not have.
#[derive(Clone, Copy)]
enum Child {
    Plain,
    OtherUser,
    Closure,
}

#[derive(Clone, Copy)]
enum Peer {
    Ours,
    Std,
}

/// The times from the call until the spawn returns, and until the child is reaped.
#[derive(Clone, Copy)]
struct Times {
    spawned: Duration,
    reaped: Duration,
}

fn main() {
    let scale = if env::args().any(|arg| arg == "--quick") {
        10
    } else {
        1
    };
    println!("| parent | child | pidfd-spawn | std | call, ours / std | to reaped, ours / std |");
    println!("|---|---|---|---|---|---|");
    compare_all("small", 5_000 / scale, 2_000 / scale);
    let ballast = ballast();
    compare_all("2 GiB", 5_000 / scale, 100 / scale);
    hint::black_box(ballast);
}

fn compare_all(parent: &str, pairs: usize, pairs_with_fork: usize) {
    compare(parent, "plain", Child::Plain, pairs);
    if nix::unistd::geteuid().is_root() {
        compare(
            parent,
            "`uid`: std forks",
            Child::OtherUser,
            pairs_with_fork,
        );
    }
    compare(
        parent,
        "`pre_exec`: both fork",
        Child::Closure,
        pairs_with_fork,
    );
}

fn compare(parent: &str, name: &str, child: Child, pairs: usize) {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..pairs {
        // Each goes first in half of the pairs.
        for turn in 0..2 {
            let index = (round + turn) % 2;
            let peer = [Peer::Ours, Peer::Std][index];
            // After a fork of the other one the memory of the parent is write-protected.
            peer.spawn(child);
            times[index].push(peer.spawn(child));
        }
    }
    let [ours, std] = times;
    let spawned = |times: &Times| micros(times.spawned);
    let ratio = |of: fn(&Times) -> Duration| {
        let pairs = ours.iter().zip(&std);
        median(pairs.map(|(ours, std)| micros(of(ours)) / micros(of(std))))
    };
    println!(
        "| {parent} | {name} | {:.1} µs | {:.1} µs | {:.3} | {:.3} |",
        median(ours.iter().map(spawned)),
        median(std.iter().map(spawned)),
        ratio(|times| times.spawned),
        ratio(|times| times.reaped),
    );
}

/// Defines a function that times a spawn with one of the two types of the same methods.
macro_rules! timed_spawn {
    ($name:ident, $command:ty) => {
        fn $name(child: Child) -> Times {
            let start = Instant::now();
            let mut command = <$command>::new(PROGRAM);
            match child {
                Child::Plain => {}
                Child::OtherUser => _ = command.uid(1),
                // SAFETY: the closure does nothing.
                Child::Closure => _ = unsafe { command.pre_exec(|| Ok(())) },
            }
            let mut child = command.spawn().unwrap();
            let spawned = start.elapsed();
            assert!(child.wait().unwrap().success());
            let reaped = start.elapsed();
            Times { spawned, reaped }
        }
    };
}
timed_spawn!(spawn_ours, pidfd_spawn::Command);
timed_spawn!(spawn_std, process::Command);

impl Peer {
    fn spawn(self, child: Child) -> Times {
        match self {
            Self::Ours => spawn_ours(child),
            Self::Std => spawn_std(child),
        }
    }
}

/// Memory whose page tables a fork copies.
fn ballast() -> Vec<u8> {
    let mut memory = vec![0; LARGE];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    memory
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
