//! What `ctr task metrics` prints of a sandbox: what its guest uses on the host.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod common;

use common::{Containerd, assert_success, stderr, stdout};

/// Returns a value of `ctr task metrics`.
fn metric(containerd: &Containerd, id: &str, name: &str) -> u64 {
    let output = containerd.ctr(["task", "metrics", id]);
    let text = stdout(&output);
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name}: {text}{}", stderr(&output)))
}

#[test]
fn the_metrics_of_a_sandbox_are_those_of_its_guest_on_the_host() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let sandbox = [
        "--detach",
        "--annotation",
        "io.kubernetes.cri.container-type=sandbox",
    ];
    assert_success(&containerd.run("sandbox", &sandbox, &["sleep", "1000"]));
    containerd.start_container("one", &["sleep", "1000"]);
    // QEMU and virtiofsd, with the memory of a kernel, and a process with that of a shell.
    assert!(metric(&containerd, "sandbox", "pids.current") >= 2);
    assert!(metric(&containerd, "sandbox", "memory.usage") > 32 << 20);
    assert!(metric(&containerd, "sandbox", "cpu.usage_usec") > 0);
    assert_eq!(metric(&containerd, "one", "pids.current"), 1);
    assert!(metric(&containerd, "one", "memory.usage") < 32 << 20);
    containerd.remove_container("sandbox");
    containerd.remove_container("one");
    containerd.assert_nothing_left();
}

#[test]
fn the_kernel_prefers_the_server_of_a_pod_to_containerd_when_memory_is_short() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    containerd.start_container("c", &["sleep", "infinity"]);
    let score = |pid: u32| -> i32 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    let expected = (score(containerd.pid()) + 1).min(1000);
    assert_eq!(score(containerd.server_pid()), expected);
    containerd.remove_container("c");
    containerd.assert_nothing_left();
}
