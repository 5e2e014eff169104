//! Containers in guests, with the real containerd and its command line `ctr`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use common::{Containerd, assert_success, eventually, stderr, stdout};

#[test]
fn a_container_prints_from_inside_a_guest() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let output = containerd.run("hello", &["--rm"], &["uname", "-v"]);
    assert_success(&output);
    let host = std::process::Command::new("uname")
        .arg("-v")
        .output()
        .unwrap();
    assert!(stdout(&output).contains("Debian"), "{}", stdout(&output));
    assert_ne!(stdout(&output), stdout(&host));
    containerd.assert_nothing_left();
}

#[test]
fn a_container_has_the_root_file_system_of_an_overlay() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let plugins = stdout(&containerd.ctr(["plugins", "ls"]));
    let is_usable = |line: &str| line.contains("overlayfs") && line.ends_with("ok");
    if !plugins.lines().map(str::trim_end).any(is_usable) {
        let is_ci = std::env::var_os("CI").is_some();
        assert!(
            !is_ci,
            "this test needs the snapshotter overlayfs: {plugins}"
        );
        eprintln!("SKIPPED: this test needs the snapshotter overlayfs");
        return;
    }
    let options = ["--detach", "--snapshotter", "overlayfs"];
    assert_success(&containerd.run("c", &options, &["sleep", "infinity"]));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let pods = containerd.pods().display().to_string();
    let mut roots = mounts.lines().filter(|line| line.contains(&pods));
    assert!(roots.any(|line| line.contains(" - overlay ")), "{mounts}");
    let script = "echo new >/etc/file && cat /etc/file && ls /bin/busybox";
    let exec = ["task", "exec", "--exec-id", "e", "c", "sh", "-c", script];
    let output = containerd.ctr(exec);
    assert_success(&output);
    assert_eq!(stdout(&output), "new\n/bin/busybox\n");
    containerd.remove_container("c");
    containerd.assert_nothing_left();
}

#[test]
fn the_exit_code_of_a_container_is_that_of_its_command() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let cases: [(&[&str], i32); 5] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 1"], 1),
        (&["sh", "-c", "exit 42"], 42),
        // The first process of a container is the pid 1 of its namespace, which cannot kill itself.
        (&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137),
        (&["/no/such/program"], 127),
    ];
    for (number, (command, code)) in cases.into_iter().enumerate() {
        let output = containerd.run(&format!("exit{number}"), &["--rm"], command);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{command:?}: {}",
            stderr(&output)
        );
    }
    containerd.assert_nothing_left();
}

#[test]
fn a_detached_container_runs_commands_and_is_paused_signalled_and_deleted() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let script = "trap 'exit 7' TERM; while :; do sleep 0.1; done";
    containerd.start_container("web", &["sh", "-c", script]);
    assert_eq!(containerd.task_status("web").as_deref(), Some("RUNNING"));

    let exec = [
        "task",
        "exec",
        "--exec-id",
        "e1",
        "web",
        "sh",
        "-c",
        "hostname; exit 5",
    ];
    let output = containerd.ctr(exec);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));

    assert_success(&containerd.ctr(["task", "pause", "web"]));
    assert_eq!(containerd.task_status("web").as_deref(), Some("PAUSED"));
    assert_success(&containerd.ctr(["task", "resume", "web"]));
    assert_eq!(containerd.task_status("web").as_deref(), Some("RUNNING"));

    // The pid of each process is that of the virtual machine.
    let list = stdout(&containerd.ctr(["task", "ls"]));
    let pid = list
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().nth(1));
    let processes = stdout(&containerd.ctr(["task", "ps", "web"]));
    let pids = processes.lines().skip(1);
    let pids: Vec<_> = pids.map(|line| line.split_whitespace().next()).collect();
    assert_eq!(pids, [pid], "{processes}");

    let metrics = stdout(&containerd.ctr(["task", "metrics", "web"]));
    let metric = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value.and_then(|value| value.parse().ok()).expect(&metrics)
    };
    // The shell, and its sleep for most of the time.
    assert!((1..=2).contains(&metric("pids.current")), "{metrics}");
    assert!(metric("cpu.usage_usec") > 0, "{metrics}");
    // Of a container, and not of the guest, which has 256 MiB.
    let usage = metric("memory.usage");
    assert!((1 << 10..64 << 20).contains(&usage), "{metrics}");

    assert_success(&containerd.ctr(["task", "kill", "--signal", "SIGTERM", "web"]));
    eventually("the task has stopped", || {
        containerd.task_status("web").as_deref() == Some("STOPPED")
    });
    let deleted = containerd.ctr(["task", "delete", "web"]);
    assert!(
        stderr(&deleted).contains("exit code 7"),
        "{}",
        stderr(&deleted)
    );
    containerd.assert_nothing_left();
}

#[test]
fn a_container_reads_its_stdin_until_the_client_closes_it() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let mut command = containerd.run_command("cat", &["--rm"], &["cat"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_success(&output);
    assert_eq!(stdout(&output), "one\ntwo\n");
    containerd.assert_nothing_left();
}

#[test]
fn a_container_has_the_environment_and_mounts_of_its_spec() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let shared = containerd.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "from the host\n").unwrap();
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:ro",
        shared.display()
    );
    let options = [
        "--rm",
        "--env",
        "COLOR=blue",
        "--cwd",
        "/new/dir",
        "--mount",
        &mount,
    ];
    let script = "echo $COLOR; pwd; cat /data/file; touch /data/new || echo read-only; \
                  echo x >/dev/null && ls /proc/self/fd >/dev/null && echo devices";
    let output = containerd.run("spec", &options, &["sh", "-c", script]);
    assert_success(&output);
    let expected = "blue\n/new/dir\nfrom the host\nread-only\ndevices\n";
    assert_eq!(stdout(&output), expected, "{}", stderr(&output));
    assert!(!shared.join("new").exists());
    containerd.assert_nothing_left();
}
