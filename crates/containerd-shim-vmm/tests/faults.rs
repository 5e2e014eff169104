//! Servers and daemons that are killed while containers run.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::events::ExitLog;
use common::{Containerd, assert_success, eventually, stderr, stdout};

fn kill(pid: u32) {
    signal(pid, "KILL");
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// Returns the pid of the only task: that of its QEMU.
fn task_pid(containerd: &Containerd) -> u32 {
    let list = stdout(&containerd.ctr(["task", "ls"]));
    let line = list.lines().last().unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn assert_killed(containerd: &Containerd, id: &str) {
    eventually("the task has stopped", || {
        containerd.task_status(id).as_deref() == Some("STOPPED")
    });
    let deleted = containerd.ctr(["task", "delete", id]);
    assert!(
        stderr(&deleted).contains("exit code 137"),
        "{}",
        stderr(&deleted)
    );
}

#[test]
fn a_killed_server_leaves_nothing_and_its_container_was_killed() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let log = ExitLog::start(&containerd);
    containerd.start_container("c", &["sleep", "1000"]);
    kill(containerd.server_pid());
    containerd.assert_nothing_left();
    eventually("the exit is reported", || !log.codes("c").is_empty());
    log.wait_connected(&containerd);
    assert_eq!(log.codes("c"), [137]);
    let deleted = containerd.ctr(["task", "delete", "c"]);
    assert!(
        deleted.status.success() || stderr(&deleted).contains("not found"),
        "{}",
        stderr(&deleted)
    );
    assert_success(&containerd.ctr(["container", "delete", "c"]));
}

#[test]
fn a_container_whose_qemu_is_killed_does_not_succeed() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    containerd.start_container("c", &["sleep", "1000"]);
    kill(task_pid(&containerd));
    assert_killed(&containerd, "c");
    containerd.assert_nothing_left();
}

#[test]
fn a_container_whose_guest_hangs_is_killed() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    for (id, options) in [("one", &[][..]), ("all", &["--all"])] {
        containerd.start_container(id, &["sleep", "1000"]);
        signal(task_pid(&containerd), "STOP");
        let kill = ["task", "kill", "--signal", "SIGKILL"];
        let kill = kill.iter().chain(options).chain([&id]);
        assert_success(&containerd.ctr(kill.copied()));
        assert_killed(&containerd, id);
        containerd.assert_nothing_left();
    }
}

#[test]
fn an_exit_while_containerd_is_away_is_reported_by_the_next_one() {
    let Some(mut containerd) = Containerd::start() else {
        return;
    };
    containerd.start_container(
        "c",
        &[
            "sh",
            "-c",
            "while ! [ -e /go ]; do sleep 0.1; done; exit 42",
        ],
    );
    let pods = std::fs::read_dir(containerd.pods()).unwrap().flatten();
    let pod = pods.map(|entry| entry.path()).next().unwrap();
    containerd.kill();
    std::fs::write(pod.join("pod/c/rootfs/go"), "").unwrap();
    let exits = || {
        let events = std::fs::read_dir(pod.join("events")).unwrap().flatten();
        let texts = events.filter_map(|entry| std::fs::read(entry.path()).ok());
        texts
            .filter(|text| String::from_utf8_lossy(text).contains("/tasks/exit"))
            .count()
    };
    eventually("the exit is kept", || exits() == 1);
    containerd.restart();
    eventually("containerd has the exit", || exits() == 0);
    assert_eq!(containerd.task_status("c").as_deref(), Some("STOPPED"));
    let deleted = containerd.ctr(["task", "delete", "c"]);
    assert!(
        stderr(&deleted).contains("exit code 42"),
        "{}",
        stderr(&deleted)
    );
    containerd.assert_nothing_left();
}
