//! Commands that run in boxes: `exec` and `attach`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use vmm_rest::wire::{ExecRequest, ExecutionStatus};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, run_shimd, shimd, skip};
use crate::process::{eventually, kill, wait_for_exit};
use crate::terminal::Terminal;

/// Starts a daemon with a box `nap`.
async fn start_box(home: &PerTestBoxHome) -> Daemon {
    let daemon = Daemon::start(home).await;
    run_shimd(home, &["run", "--detach", "--name", "nap", "idle"]).out();
    daemon
}

fn exec(home: &PerTestBoxHome, args: &[&str]) -> Command {
    let mut command = shimd(home);
    command.arg("exec").args(args);
    command
}

/// Returns the status of the only execution of the box `nap`.
async fn status(daemon: &Daemon) -> ExecutionStatus {
    let executions = daemon.client.executions("nap").await.unwrap();
    assert_eq!(executions.len(), 1, "{executions:?}");
    executions[0].status
}

#[tokio::test]
async fn exec_separates_stdout_and_stderr_and_returns_the_exit_code() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    let script = "echo out; echo err >&2; echo $A$B; pwd; cat; exit 7";
    let mut command = exec(&home, &["-e", "A=a", "--env", "B", "-w", "/usr", "nap"]);
    command.args(["sh", "-c", script]).env("B", "b");
    let output = CommandOutput::of(&mut command);
    assert_eq!((output.code, output.err.as_str()), (7, "err\n"));
    assert_eq!(output.out, "out\nab\n/usr\n");
    let large = run_shimd(&home, &["exec", "nap", "seq", "200000"]).out();
    assert!(large.lines().count() == 200_000 && large.ends_with("\n200000\n"));
    daemon.shut_down().await;
}

#[tokio::test]
async fn failures_of_exec_have_the_exit_codes_of_docker() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    run_shimd(&home, &["create", "--name", "idle", "idle"]).out();
    let not_executable = home.path().join("not found");
    fs::write(&not_executable, "").unwrap();
    let not_executable = not_executable.to_str().unwrap();
    for (args, code, message) in [
        (&["nap", "/nonexistent"][..], 127, "not found"),
        (&["nap", "/etc/passwd"], 126, "/etc/passwd"),
        (&["nap", not_executable], 126, not_executable),
        (&["nap", "sh", "-c", "kill -9 $$"], 137, ""),
        (&["missing", "true"], 125, "missing"),
        (&["idle", "true"], 125, "shimd start idle"),
        (&["-it", "nap", "true"], 125, "omit --tty"),
        (&["nap"], 125, "Usage"),
    ] {
        let output = CommandOutput::of(&mut exec(&home, args));
        assert_eq!(output.code, code, "{args:?}: {output:?}");
        assert!(output.err.contains(message), "{args:?}: {output:?}");
    }
    daemon.shut_down().await;
}

#[tokio::test]
async fn exec_sends_stdin_to_its_end() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    let mut command = exec(&home, &["-i", "nap", "sh", "-c", "wc -c; exit 3"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut stdin = process.stdin.take().unwrap();
    for _ in 0..64 {
        stdin.write_all(&[0; 1 << 16]).unwrap();
    }
    drop(stdin);
    assert_eq!(wait_for_exit(&mut process).await.code(), Some(3));
    let mut text = String::new();
    let mut stdout = process.stdout.take().unwrap();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), (64 << 16).to_string());

    // The command ends before its input.
    let mut command = exec(&home, &["-i", "nap", "sh", "-c", "exit 4"]);
    let mut process = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = process.stdin.take().unwrap();
    assert_eq!(wait_for_exit(&mut process).await.code(), Some(4));
    drop(stdin);
    daemon.shut_down().await;
}

#[tokio::test]
async fn signals_are_sent_to_the_command_and_the_second_one_kills_it() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    for (trap, signals, code) in [("exit 9", 1, 9), ("echo asked", 2, 137)] {
        let script = format!("trap '{trap}' TERM; echo up; while :; do sleep 0.01; done");
        let mut command = exec(&home, &["nap", "sh", "-c", &script]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        for line in ["up", "asked"].into_iter().take(signals) {
            assert_eq!(lines.next().unwrap().unwrap(), line);
            kill(process.id(), Signal::SIGTERM);
        }
        assert_eq!(wait_for_exit(&mut process).await.code(), Some(code));
    }
    daemon.shut_down().await;
}

#[tokio::test]
async fn a_detached_command_is_attached_later() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    let go = home.path().join("go");
    let script = format!(
        "echo first; until rm {} 2>/dev/null; do sleep 0.01; done; exit 6",
        go.display()
    );
    let detached = run_shimd(&home, &["exec", "-d", "nap", "sh", "-c", &script]).out();
    let execution = detached.trim();
    assert_eq!(status(&daemon).await, ExecutionStatus::Running);
    let mut attach = shimd(&home);
    attach.args(["attach", "nap"]).stdout(Stdio::piped());
    let mut attach = attach.spawn().unwrap();
    let mut lines = BufReader::new(attach.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    fs::write(&go, "").unwrap();
    assert_eq!(wait_for_exit(&mut attach).await.code(), Some(6));
    // One that has ended is attached by its id only.
    let again = run_shimd(&home, &["attach", "nap", execution]);
    assert_eq!((again.code, again.out.as_str()), (6, ""), "{again:?}");
    let none = run_shimd(&home, &["attach", "nap"]);
    assert!(none.code == 125 && none.err.contains("0 executions"));
    daemon.shut_down().await;
}

#[tokio::test]
async fn attach_without_stdin_leaves_the_stdin_of_the_command_open() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    let request = ExecRequest::new("sh", ["-c", "echo ready; read line; exit 9"]);
    daemon.client.exec("nap", &request).await.unwrap();
    let mut attach = shimd(&home);
    attach.args(["attach", "--no-stdin", "nap"]);
    let mut attach = attach.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(attach.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    // At the end of its stdin, the command would exit before the signal.
    kill(attach.id(), Signal::SIGTERM);
    assert_eq!(wait_for_exit(&mut attach).await.code(), Some(143));
    daemon.shut_down().await;
}

#[tokio::test]
async fn a_detached_command_has_no_stdin() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    run_shimd(&home, &["exec", "-d", "nap", "cat"]).out();
    eventually("cat has read the end of its stdin", async || {
        status(&daemon).await == ExecutionStatus::Completed
    })
    .await;
    daemon.shut_down().await;
}

#[tokio::test]
async fn attach_reports_output_that_was_dropped() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    let up = home.path().join("up");
    let script = format!("read go; seq 100000; touch {}; exit 3", up.display());
    let request = ExecRequest::new("sh", ["-c", &script]);
    let execution = daemon.client.exec("nap", &request).await.unwrap();
    let execution = execution.execution_id;
    // The command gets the input of a client that leaves.
    let (mut input, events) = daemon.client.attach("nap", &execution).await.unwrap();
    input.write("go\n").await.unwrap();
    drop((input, events));
    eventually("the command has written", async || up.exists()).await;
    let attached = run_shimd(&home, &["attach", "nap", &execution]);
    assert_eq!(attached.code, 3);
    assert!(attached.out.ends_with("\n100000\n"));
    let message = " bytes of output were dropped";
    assert!(attached.err.contains(message), "{}", attached.err);
    daemon.shut_down().await;
}

#[tokio::test]
async fn a_command_whose_reader_is_gone_is_hung_up() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    let mut command = exec(&home, &["nap", "yes"]);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = process.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    assert_eq!(wait_for_exit(&mut process).await.code(), Some(0));
    eventually("the command has ended", async || {
        status(&daemon).await == ExecutionStatus::Killed
    })
    .await;
    daemon.shut_down().await;
}

#[tokio::test]
async fn a_shell_in_a_terminal_is_interrupted_resized_left_and_attached_again() {
    let home = PerTestBoxHome::new();
    let Some(terminal) = Terminal::open(&home, 80, 24) else {
        return;
    };
    let daemon = start_box(&home).await;
    drive_shell(&home, &daemon, &terminal).await;
    daemon.shut_down().await;
}

/// Uses a shell of the box `nap` as a user does, in a terminal of 80 columns and 24 rows.
pub(crate) async fn drive_shell(home: &PerTestBoxHome, daemon: &Daemon, terminal: &Terminal) {
    let program = env!("CARGO_BIN_EXE_shimd");
    let at_home = format!("{program} --home {}", home.path().display());
    terminal.enter(&format!("{at_home} exec -it -e PS1='box> ' nap sh"));
    terminal
        .wait_for("the shell in the box", |text| {
            text.lines().any(|line| line.starts_with("box>"))
        })
        .await;
    terminal.enter("stty size");
    terminal
        .wait_for("the size", |text| text.contains("24 80"))
        .await;
    terminal.resize(100, 30);
    let resized = async |expected: &str| {
        // The new size arrives a moment later.
        for _ in 0..1000 {
            terminal.enter("clear; stty size");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            if terminal.text().contains(expected) {
                return;
            }
        }
        panic!("{}", terminal.text());
    };
    resized("30 100").await;
    // Its output proves that the foreground process is this one: Ctrl-C reaches nothing else.
    terminal.enter("sh -c 'echo $((50 + 5)) seconds; exec sleep 1000'");
    terminal
        .wait_for("the sleep", |text| text.contains("55 seconds"))
        .await;
    terminal.press("C-c");
    terminal.enter("echo still $((40 + 2))");
    terminal
        .wait_for("the shell after Ctrl-C", |text| text.contains("still 42"))
        .await;

    terminal.press("C-p");
    terminal.press("C-q");
    terminal
        .wait_for("the message", |text| text.contains("detached"))
        .await;
    assert_eq!(status(daemon).await, ExecutionStatus::Running);
    terminal.enter(&format!("clear; {at_home} attach nap; echo code $?"));
    terminal.enter("echo again $((40 + 2))");
    terminal
        .wait_for("the same shell", |text| text.contains("again 42"))
        .await;
    terminal.enter("exit 5");
    terminal
        .wait_for("the exit code", |text| text.contains("code 5"))
        .await;
    // The terminal shows what is typed again.
    terminal.enter("stty -a");
    terminal
        .wait_for("the restored terminal", |text| text.contains(" echo "))
        .await;
}

#[tokio::test]
async fn a_paused_box_runs_no_commands_until_it_is_unpaused() {
    let home = PerTestBoxHome::new();
    let daemon = start_box(&home).await;
    let paused = run_shimd(&home, &["pause", "nap"]);
    if paused.err.contains("version 2") {
        return skip(&paused.err);
    }
    assert_eq!(paused.out(), "nap\n");
    let list = run_shimd(&home, &["ps"]).out();
    assert!(list.contains("paused"), "{list}");
    let listed = run_shimd(&home, &["ps", "--quiet", "--filter", "status=paused"]).out();
    assert_eq!(listed.lines().count(), 1);
    let exec = run_shimd(&home, &["exec", "nap", "true"]);
    assert!(exec.code == 125 && exec.err.contains("paused"), "{exec:?}");
    assert_eq!(run_shimd(&home, &["unpause", "nap"]).out(), "nap\n");
    run_shimd(&home, &["exec", "nap", "true"]).out();
    let refused = run_shimd(&home, &["pause", "missing"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    daemon.shut_down().await;
}
