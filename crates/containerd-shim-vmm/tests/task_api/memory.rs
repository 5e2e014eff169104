//! The memory and the descriptors that a pod needs beside its virtual machine.

use std::fs;

use crate::fixture::{TestPod, eventually};
use crate::smaps::Memory;

/// The most that the server and the shim may have together, as the test profile builds them. Most of it are pages of the
/// program, which is not optimized. `BENCHMARKS.md` has the figures of the release build.
const MAX_PSS_KIB: u64 = 29 << 10;

/// The most of it that is anonymous: other pods, which run beside this one, do not share it.
const MAX_ANONYMOUS_KIB: u64 = 7 << 10;

/// How many containers and further processes run before the memory is measured again.
const ROUNDS: usize = 10;

/// What allocators may keep. A leak of 26 KiB for each round exceeds it.
const MAX_GROWTH_KIB: u64 = 256;

#[test]
fn the_memory_and_descriptors_of_a_pod_are_bounded_and_do_not_grow() {
    let Some(pod) = TestPod::start() else { return };
    pod.run("c", &["sleep", "1000"], "");
    let run = |rounds: usize| {
        for round in 0..rounds {
            assert_eq!(pod.run_exec("c", &["sh", "-c", "exit 3"]), 3);
            let id = format!("{rounds}-{round}");
            pod.run(&id, &["sh", "-c", "exit 4"], "");
            pod.wait_for(&format!("exit {id} 4"));
            pod.delete(&id, "").unwrap();
        }
    };
    // What is allocated once.
    run(3);
    let pids = pod.processes();
    assert_eq!(pids.len(), 2, "the server and the shim");
    let measure = || -> Vec<Memory> { pids.iter().copied().map(Memory::of).collect() };
    let descriptors = || -> Vec<usize> { pids.iter().copied().map(count_descriptors).collect() };

    let (before, open_before) = (measure(), descriptors());
    run(ROUNDS);
    let after = measure();
    println!("{before:?}, {after:?}, {open_before:?} descriptors");
    let pss: u64 = after.iter().map(|memory| memory.pss).sum();
    assert!(pss < MAX_PSS_KIB, "{pss} KiB: {after:?}");
    let anonymous: u64 = after.iter().map(|memory| memory.anonymous).sum();
    assert!(anonymous < MAX_ANONYMOUS_KIB, "{anonymous} KiB: {after:?}");
    for (before, after) in before.iter().zip(&after) {
        let grown = after.anonymous.saturating_sub(before.anonymous);
        assert!(grown < MAX_GROWTH_KIB, "{grown} KiB: {before:?} {after:?}");
    }
    eventually("the descriptors are closed", || {
        let open = descriptors();
        open.iter().zip(&open_before).all(|(now, then)| now <= then)
    });
}

fn count_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
