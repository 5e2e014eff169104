//! Commands, terminals and signals of a container that runs, with the real containerd and its command line `ctr`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::process::{Output, Stdio};

use common::terminal::Terminal;
use common::{Containerd, assert_success, eventually, stderr, stdout};

/// SIGKILL and SIGSTOP, which a shell cannot trap, and SIGCHLD, which its children send.
const NOT_TRAPPED: [i32; 3] = [9, 17, 19];

/// The kernel discards one that is pending when a stop signal is sent, signal(7).
const SIGCONT: i32 = 18;

#[test]
fn a_command_in_a_container_has_the_terminal_of_the_client() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    containerd.start_container("c", &["sleep", "infinity"]);
    // The client sets the size after the start of the command.
    let script = "wait_for() { while [ \"$(stty size)\" != \"$1\" ]; do sleep 0.1; done; echo size $1; }; \
                  wait_for '30 100'; wait_for '50 120'; read line; echo got $line; exit 5";
    let exec = [
        "task",
        "exec",
        "--tty",
        "--exec-id",
        "e",
        "c",
        "sh",
        "-c",
        script,
    ];
    let mut terminal = Terminal::open(30, 100);
    let mut client = terminal.spawn(&containerd.ctr_command(exec));
    terminal.wait_for("size 30 100");
    terminal.resize(50, 120);
    terminal.wait_for("size 50 120");
    terminal.write("hello\n");
    terminal.wait_for("got hello");
    assert_eq!(client.wait().unwrap().code(), Some(5));
    containerd.remove_container("c");
    containerd.assert_nothing_left();
}

#[test]
fn commands_in_a_container_have_their_own_stdin_and_exit_code() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    containerd.start_container("c", &["sleep", "infinity"]);
    let command = |id: &str, command: &[&str]| {
        let exec = ["task", "exec", "--exec-id", id, "c"];
        containerd.ctr_command(exec.iter().chain(command).copied())
    };
    let mut cat = command("cat", &["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
    let output = cat.wait_with_output().unwrap();
    assert_success(&output);
    assert_eq!(stdout(&output), "one\ntwo\n");

    let code = |id: &str, arguments: &[&str]| {
        let output: Output = command(id, arguments).output().unwrap();
        output.status.code()
    };
    assert_eq!(code("killed", &["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code("missing", &["/no/such/program"]), Some(127));
    assert_eq!(code("directory", &["/tmp"]), Some(126));

    let user = [
        "task",
        "exec",
        "--exec-id",
        "user",
        "--user",
        "33:34",
        "c",
        "id",
    ];
    let output = containerd.ctr(user);
    assert!(
        stdout(&output).starts_with("uid=33 gid=34"),
        "{}",
        stderr(&output)
    );

    let script = "echo www:x:33:34::/var/www:/bin/sh >/etc/passwd";
    assert_eq!(code("passwd", &["sh", "-c", script]), Some(0));
    let home = |id: &str, user: &str| {
        let exec = ["task", "exec", "--exec-id", id, "--user", user, "c"];
        stdout(&containerd.ctr(exec.into_iter().chain(["sh", "-c", "echo $HOME"])))
    };
    assert_eq!(home("home", "33:34"), "/var/www\n");
    assert_eq!(home("none", "44:44"), "/\n");

    let refused = containerd.ctr(["task", "checkpoint", "c"]);
    assert!(
        stderr(&refused).contains("cannot be saved"),
        "{}",
        stderr(&refused)
    );
    containerd.remove_container("c");
    containerd.assert_nothing_left();
}

#[test]
fn every_signal_reaches_a_container() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let signals: Vec<_> = (1..=31)
        .filter(|signal| !NOT_TRAPPED.contains(signal))
        .collect();
    let traps: String = signals
        .iter()
        .map(|signal| format!("trap 'echo {signal} >>/got' {signal}; "))
        .collect();
    let script = format!("{traps} touch /got; while :; do sleep 0.1; done");
    containerd.start_container("c", &["sh", "-c", &script]);
    let got = || {
        let exec = ["task", "exec", "--exec-id", "got", "c", "cat", "/got"];
        let output = containerd.ctr(exec);
        let mut got: Vec<i32> = stdout(&output)
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        got.sort_unstable();
        output.status.success().then_some(got)
    };
    eventually("the signals are trapped", || got().is_some());
    let send = |signal: i32| {
        let kill = ["task", "kill", "--signal", &signal.to_string(), "c"];
        assert_success(&containerd.ctr(kill));
    };
    signals
        .iter()
        .filter(|signal| **signal != SIGCONT)
        .for_each(|signal| send(*signal));
    eventually("the others have arrived", || {
        got().is_some_and(|got| got.len() == signals.len() - 1)
    });
    send(SIGCONT);
    eventually("the signals have arrived", || {
        got().as_ref() == Some(&signals)
    });
    containerd.remove_container("c");
    containerd.assert_nothing_left();
}
