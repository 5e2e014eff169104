//! Compares pods of this runtime with those of runc, under one containerd: `cargo bench -p containerd-shim-vmm --bench pods`.
//!
//! Each row alternates between the two and compares them in pairs, because machines drift. The program is the one that the
//! README installs, which the benchmark builds. Needs root, containerd, runc, umoci, QEMU and the files that `.ci/guest-files`
//! downloads.
//!
//! `-- --memory` measures the memory only. The benchmark fails if a pod has more than it may have.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod pairs;
mod processes;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::memory::Memory;
use common::{Containerd, IMAGE, assert_success, eventually};
use pairs::Pairs;
use processes::{Role, print_memory};

const PODS: usize = 15;
const AT_REST: [usize; 2] = [1, 10];

/// After which the threads that start a pod have ended.
const REST: Duration = Duration::from_secs(3);

/// The PSS that both processes of the program may have beside QEMU and virtiofsd.
const MAX_PSS_KIB: u64 = 6 << 10;
/// The same for the only pod of a host, which shares no page of the program with other pods.
const MAX_PSS_KIB_OF_ONE: u64 = 6656;

const VMM: &str = "io.containerd.vmm.v1";
const RUNC: &str = "io.containerd.runc.v2";

/// What a log line of the runtime begins with after a boot.
const BOOTED: &str = "the guest has booted in ";

fn main() {
    // `cargo test --benches` only checks that it runs.
    let is_short = !std::env::args().any(|arg| arg == "--bench");
    let containerd = match is_short {
        true => Containerd::start(),
        false => Containerd::start_program(&build_program()),
    };
    let Some(containerd) = containerd else { return };
    if !std::env::args().any(|arg| arg == "--memory") {
        compare_starts(&containerd, if is_short { 1 } else { PODS });
    }
    println!("\n| pods | process | PSS | anonymous |\n|---|---|---|---|");
    let counts: &[usize] = if is_short { &[1] } else { &AT_REST };
    for &pods in counts {
        let roles = [Role::Server, Role::GuestShim, Role::Qemu, Role::Virtiofsd];
        let own = measure_memory(&containerd, VMM, pods, &roles);
        measure_memory(&containerd, RUNC, pods, &[Role::RuncShim]);
        if !is_short {
            println!(
                "| {pods} | **both processes of this program** | {} KiB | {} KiB |",
                own.pss, own.anonymous
            );
            let max = if pods == 1 {
                MAX_PSS_KIB_OF_ONE
            } else {
                MAX_PSS_KIB
            };
            assert!(own.pss <= max, "a pod of {pods} has more than {max} KiB");
        }
    }
    containerd.assert_nothing_left();
}

/// Builds the program as the README of this crate does.
fn build_program() -> PathBuf {
    // target/release/deps/<benchmark>
    let benchmark = std::env::current_exe().unwrap();
    let target = benchmark.ancestors().nth(3).unwrap();
    let triple = "x86_64-unknown-linux-gnu";
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--profile", "shim", "--target", triple])
        .args(["--package", "containerd-shim-vmm"])
        .arg("--target-dir")
        .arg(target)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status();
    assert!(built.unwrap().success(), "the program cannot be built");
    target.join(triple).join("shim/containerd-shim-vmm-v1")
}

/// Compares the start and the end of a pod, again and again.
fn compare_starts(containerd: &Containerd, pods: usize) {
    let [mut starts, mut boots, mut others, mut deletions] = [(); 4].map(|()| Pairs::default());
    // The first of each reads its programs from the disk.
    for number in 0..=pods {
        let runc = life(containerd, RUNC, &format!("runc-{number}"));
        let vmm = life(containerd, VMM, &format!("vmm-{number}"));
        if number > 0 {
            starts.add(vmm.start, runc.start);
            boots.add(vmm.boot, runc.start);
            others.add(vmm.start.saturating_sub(vmm.boot), runc.start);
            deletions.add(vmm.deletion, runc.deletion);
        }
    }
    println!("| {pods} pods in turn | vmm | runc | ratio | | |\n|---|---|---|---|---|---|");
    starts.print("`ctr run --detach`", None);
    boots.print(
        "of it the boot of the guest, and a whole start with runc",
        None,
    );
    others.print("of it everything else, and a whole start with runc", None);
    deletions.print("`ctr task delete --force`", None);
}

/// How long the parts of the life of a pod took.
struct Life {
    start: Duration,
    boot: Duration,
    deletion: Duration,
}

fn life(containerd: &Containerd, runtime: &str, id: &str) -> Life {
    let boots = boots(containerd).len();
    let start = start_pod(containerd, runtime, id);
    let mut boot = Duration::ZERO;
    if runtime == VMM {
        eventually("the boot is in the log", || {
            boot = self::boots(containerd)
                .get(boots)
                .copied()
                .unwrap_or_default();
            !boot.is_zero()
        });
    }
    let deletion = delete_pod(containerd, id);
    Life {
        start,
        boot,
        deletion,
    }
}

/// Starts a pod. Returns how long it took.
fn start_pod(containerd: &Containerd, runtime: &str, id: &str) -> Duration {
    let fixed = ["run", "--detach", "--null-io", "--runtime", runtime];
    let args = [
        &fixed[..],
        &["--snapshotter", "native", IMAGE, id, "sleep", "1000"],
    ]
    .concat();
    let start = Instant::now();
    let output = containerd.ctr(args);
    let duration = start.elapsed();
    assert_success(&output);
    duration
}

/// Kills and deletes a pod. Returns how long it took, without the removal of its file system.
fn delete_pod(containerd: &Containerd, id: &str) -> Duration {
    let start = Instant::now();
    let output = containerd.ctr(["task", "delete", "--force", id]);
    let duration = start.elapsed();
    // It has the exit code of the container.
    drop(output);
    assert!(containerd.task_status(id).is_none(), "{id} is left");
    assert_success(&containerd.ctr(["container", "delete", id]));
    duration
}

/// Returns how long each guest took to boot, from the log of containerd.
fn boots(containerd: &Containerd) -> Vec<Duration> {
    let log = fs::read_to_string(containerd.path("containerd.log")).unwrap_or_default();
    let lines = log.lines().filter_map(|line| line.split_once(BOOTED));
    let boots = lines.filter_map(|(_, time)| time.split_once(" ms")?.0.parse().ok());
    boots.map(Duration::from_millis).collect()
}

/// Prints the memory of the processes of pods that run at the same time. Returns that of the program in one of them.
fn measure_memory(containerd: &Containerd, runtime: &str, pods: usize, roles: &[Role]) -> Memory {
    let id = |number: usize| format!("rest-{number}");
    for number in 0..pods {
        start_pod(containerd, runtime, &id(number));
    }
    thread::sleep(REST);
    let own = print_memory(&containerd.processes(), pods, roles);
    for number in 0..pods {
        delete_pod(containerd, &id(number));
    }
    own
}
