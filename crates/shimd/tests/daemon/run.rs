use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use vmm_rest::wire::BoxStatus;
use vmm_runtime::testing::PerTestBoxHome;

use crate::delayed_start::DelayedStart;
use crate::fixture::{CommandOutput, Daemon, ignore_sigterm, run_shimd, serve, shimd};
use crate::process::{eventually, kill, state_of, wait_for_exit};

#[tokio::test]
async fn run_prints_the_output_and_returns_the_exit_code() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let script = "echo out; echo err >&2; echo $A$B; pwd; exit 7";
    let mut command = shimd(&home);
    command
        .args(["run", "-e", "A=a", "--env", "B", "-w", "/usr", "idle"])
        .args(["sh", "-c", script])
        .env("B", "b");
    let output = CommandOutput::of(&mut command);
    assert_eq!((output.code, output.err.as_str()), (7, ""), "{output:?}");
    assert_eq!(output.out, "out\nerr\nab\n/usr\n");
    daemon.shut_down().await;
}

#[tokio::test]
async fn large_output_is_printed_completely() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let output = run_shimd(&home, &["run", "--rm", "idle", "seq", "100000"]).out();
    assert_eq!(output.lines().count(), 100_000);
    assert!(output.ends_with("\n100000\n"));
    daemon.shut_down().await;
}

#[tokio::test]
async fn output_is_printed_completely_during_rotation() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    // Waits until a part is printed before it writes the next: older files are deleted.
    let script = "i=0; while [ $i -lt 20 ]; do seq $((i * 1000)) $((i * 1000 + 600));
        while [ ! -e $GO/$i ]; do sleep 0.01; done; i=$((i + 1)); done; exit 6";
    let image = serde_json::json!({
        "command": ["timeout", "60", "sh", "-c", script],
        "console": {"max_bytes": 4096, "files": 2},
    });
    fs::write(images.path().join("loud.json"), image.to_string()).unwrap();
    let mut command = serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    let go = tempfile::tempdir().unwrap();
    let mut run = shimd(&home);
    run.args(["run", "-e", &format!("GO={}", go.path().display())]);
    let run = run.args(["--name", "loud", "loud"]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = run.spawn().unwrap();
    let mut lines = io::BufReader::new(run.stdout.take().unwrap()).lines();
    for part in 0..20 {
        for line in part * 1000..=part * 1000 + 600 {
            assert_eq!(lines.next().unwrap().unwrap(), line.to_string());
        }
        File::create(go.path().join(part.to_string())).unwrap();
    }
    assert!(lines.next().is_none());
    assert_eq!(wait_for_exit(&mut run).await.code(), Some(6));
    assert_eq!(run.wait_with_output().unwrap().stderr, b"");
    let id = daemon.client.inspect("loud").await.unwrap().box_id;
    let dir = home.path().join("boxes").join(id);
    let kept = fs::metadata(dir.join("console.log")).unwrap().len()
        + fs::metadata(dir.join("console.log.1")).unwrap().len();
    assert!(kept <= 8192, "{kept}");
    daemon.shut_down().await;
}

#[tokio::test]
async fn failures_have_the_exit_codes_of_docker() {
    let home = PerTestBoxHome::new();
    let without_daemon = run_shimd(&home, &["run", "idle", "true"]);
    assert_eq!(without_daemon.code, 125);
    assert!(without_daemon.err.contains("shimd serve"));

    let daemon = Daemon::start(&home).await;
    let code = |args: &[&str]| run_shimd(&home, &[&["run", "--rm"], args].concat()).code;
    assert_eq!(code(&["idle", "true"]), 0);
    assert_eq!(code(&["idle", "/nonexistent/program"]), 127);
    assert_eq!(code(&["idle", "/etc/passwd"]), 126);
    assert_eq!(code(&["idle", "sh", "-c", "kill -KILL $$"]), 137);
    assert_eq!(code(&["nonesuch"]), 125);
    assert_eq!(code(&["--cpus", "many", "idle"]), 125);
    assert_eq!(code(&["--cpus", "1000", "idle"]), 125);
    assert_eq!(code(&["--name", "a b", "idle"]), 125);
    let detached = run_shimd(&home, &["run", "--detach", "idle", "/nonexistent/program"]);
    assert_eq!((detached.code, detached.out.as_str()), (127, ""));
    assert!(detached.err.contains("/nonexistent/program"));
    let left = daemon.client.all_boxes().await.unwrap();
    assert_eq!(left.len(), 1, "--rm also removes a box that did not start");
    let no_workdir = run_shimd(&home, &["run", "-d", "-w", "/nonexistent", "idle"]);
    assert_eq!(no_workdir.code, 125);
    assert_eq!(no_workdir.err.lines().count(), 1, "{no_workdir:?}");
    daemon.shut_down().await;
}

#[tokio::test]
async fn first_signal_stops_the_box_and_second_kills_it() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut polite = shimd(&home);
    let mut polite = polite
        .args(["run", "--name", "polite", "idle"])
        .spawn()
        .unwrap();
    wait_until_running(&daemon, "polite").await;
    kill(polite.id(), Signal::SIGINT);
    assert_eq!(wait_for_exit(&mut polite).await.code(), Some(128 + 15));
    let stopped = daemon.client.inspect("polite").await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);

    let up = home.path().join("up");
    let mut stubborn = shimd(&home);
    stubborn.args(["run", "--rm", "--name", "stubborn", "idle"]);
    let mut stubborn = stubborn.args(ignore_sigterm(&up)).spawn().unwrap();
    eventually("the payload is up", async || up.exists()).await;
    wait_until_running(&daemon, "stubborn").await;
    kill(stubborn.id(), Signal::SIGTERM);
    kill(stubborn.id(), Signal::SIGINT);
    assert_eq!(wait_for_exit(&mut stubborn).await.code(), Some(128 + 9));
    assert!(!daemon.client.exists("stubborn").await.unwrap());
    daemon.shut_down().await;
}

#[tokio::test]
async fn signal_before_the_payload_is_ready_sets_the_exit_code() {
    let home = PerTestBoxHome::new();
    let images = tempfile::tempdir().unwrap();
    let image = r#"{"command": ["sh", "-c", "touch $UP; sleep 1000"], "ready": "notified"}"#;
    fs::write(images.path().join("unready.json"), image).unwrap();
    let mut command = serve(&home);
    command.arg("--images").arg(images.path());
    let daemon = Daemon::spawn(&home, command).await;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let up = home.path().join(signal.as_str());
        let mut run = shimd(&home);
        run.args(["run", "--rm", "-e"]);
        run.arg(format!("UP={}", up.display())).arg("unready");
        let mut run = run.stderr(Stdio::null()).spawn().unwrap();
        eventually("the payload is up", async || up.exists()).await;
        kill(run.id(), signal);
        assert_eq!(
            wait_for_exit(&mut run).await.code(),
            Some(128 + signal as i32)
        );
    }
    assert_eq!(daemon.client.all_boxes().await.unwrap(), []);
    daemon.shut_down().await;
}

#[tokio::test]
async fn stop_that_overtakes_the_start_ends_the_box() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let before = PerTestBoxHome::new();
    let start = DelayedStart::between(&before, &home);
    let mut run = shimd(&before);
    run.args(["run", "--rm", "idle"]).stderr(Stdio::null());
    let mut run = run.spawn().unwrap();
    eventually("the start is requested", async || start.is_delayed()).await;
    kill(run.id(), Signal::SIGTERM);
    assert_eq!(wait_for_exit(&mut run).await.code(), Some(128 + 15));
    assert_eq!(daemon.client.all_boxes().await.unwrap(), []);
    daemon.shut_down().await;
}

/// Returns a payload that writes more than a pipe holds, creates the file, and runs `then`.
fn fill_pipe(up: &Path, then: &str) -> [String; 3] {
    let script = format!("seq 1 200000; touch {}; {then}", up.display());
    ["sh".to_owned(), "-c".to_owned(), script]
}

#[tokio::test]
async fn signals_are_handled_while_stdout_is_blocked() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    for (name, then, code) in [
        ("polite", "sleep 1000", 128 + 15),
        (
            "stubborn",
            "trap '' TERM; touch $0; while :; do sleep 0.01; done",
            128 + 9,
        ),
    ] {
        let up = home.path().join(name);
        let (mut reader, writer) = io::pipe().unwrap();
        let mut run = shimd(&home);
        run.args(["run", "--name", name, "idle"]);
        let ignores = home.path().join("ignores");
        run.args(fill_pipe(&up, then)).arg(&ignores);
        let mut run = run.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
        eventually("the payload has written everything", async || up.exists()).await;
        // The rest of the output fills the pipe and blocks the console thread.
        reader.read_exact(&mut [0]).unwrap();
        if name == "stubborn" {
            eventually("the payload ignores SIGTERM", async || ignores.exists()).await;
            kill(run.id(), Signal::SIGTERM);
        }
        kill(run.id(), Signal::SIGINT);
        assert_eq!(wait_for_exit(&mut run).await.code(), Some(code));
        let ended = daemon.client.inspect(name).await.unwrap();
        assert_eq!(ended.status, BoxStatus::Stopped);
    }
    daemon.shut_down().await;
}

#[tokio::test]
async fn slow_reader_gets_all_output() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let (mut reader, writer) = io::pipe().unwrap();
    let mut command = shimd(&home);
    command.args(["run", "--name", "loud", "idle", "seq", "200000"]);
    let mut run = command.stdout(writer).spawn().unwrap();
    drop(command);
    eventually("the box has ended", async || {
        let found = daemon.client.inspect("loud").await;
        found.is_ok_and(|found| found.exit_code == Some(0))
    })
    .await;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 200_000);
    assert!(wait_for_exit(&mut run).await.success());
    daemon.shut_down().await;
}

#[tokio::test]
async fn output_error_is_reported_and_stops_the_box() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    command.args(["run", "--name", "unheard", "idle"]);
    command.args(["sh", "-c", "echo word; sleep 1000"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    // In a blocking task, because it reads stderr to its end.
    let output = tokio::task::spawn_blocking(move || {
        let run = command.stdout(full).stderr(Stdio::piped()).spawn();
        let output = run.unwrap().wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    });
    let (code, err) = output.await.unwrap();
    assert_eq!(code, Some(125));
    assert!(err.contains("cannot print: No space left"), "{err}");
    let stopped = daemon.client.inspect("unheard").await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    daemon.shut_down().await;
}

#[tokio::test]
async fn sighup_stops_the_box() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    let mut run = command
        .args(["run", "--name", "polite", "idle"])
        .spawn()
        .unwrap();
    wait_until_running(&daemon, "polite").await;
    kill(run.id(), Signal::SIGHUP);
    assert_eq!(wait_for_exit(&mut run).await.code(), Some(128 + 15));
    let stopped = daemon.client.inspect("polite").await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    daemon.shut_down().await;
}

#[tokio::test]
async fn ignored_sighup_does_not_stop_the_box() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let go = home.path().join("go");
    let script = "while [ ! -e $0 ]; do sleep 0.01; done; exit 7";
    let run = shimd(&home);
    let mut nohup = Command::new("nohup");
    nohup.arg(run.get_program()).args(run.get_args());
    nohup.args(["run", "--name", "keeper", "idle", "sh", "-c", script]);
    nohup.arg(&go).stdin(Stdio::null()).stderr(Stdio::null());
    let mut nohup = nohup.stdout(Stdio::null()).spawn().unwrap();
    wait_until_running(&daemon, "keeper").await;
    kill(nohup.id(), Signal::SIGHUP);
    File::create(&go).unwrap();
    assert_eq!(wait_for_exit(&mut nohup).await.code(), Some(7));
    daemon.shut_down().await;
}

#[tokio::test]
async fn box_removed_by_another_client_is_not_an_error() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    command.args(["run", "--rm", "--name", "gone", "idle"]);
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let run = run.spawn().unwrap();
    wait_until_running(&daemon, "gone").await;
    daemon.client.remove("gone", true).await.unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 9));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    daemon.shut_down().await;
}

#[tokio::test]
async fn broken_pipe_stops_the_box() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    command.args(["run", "--name", "chatty", "idle"]);
    command.args(["sh", "-c", "while :; do echo word; sleep 0.01; done"]);
    let mut chatty = command.stdout(Stdio::piped()).spawn().unwrap();
    wait_until_running(&daemon, "chatty").await;
    drop(chatty.stdout.take());
    assert_eq!(wait_for_exit(&mut chatty).await.code(), Some(128 + 15));
    daemon.shut_down().await;
}

#[tokio::test]
async fn run_reports_code_and_output_of_a_box_that_ends_with_the_daemon() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let home = PerTestBoxHome::new();
        let mut daemon = Daemon::start(&home).await;
        let up = home.path().join("up");
        let script = "trap 'echo last words; exit 7' TERM; touch $0; while :; do sleep 0.01; done";
        let mut run = shimd(&home);
        run.args(["run", "--name", "orphan", "idle", "sh", "-c", script]);
        let mut run = run.arg(&up).stdout(Stdio::piped()).spawn().unwrap();
        eventually("the payload is up", async || up.exists()).await;
        wait_until_running(&daemon, "orphan").await;
        daemon.signal(signal);
        daemon.wait().await;
        assert_eq!(wait_for_exit(&mut run).await.code(), Some(7), "{signal}");
        let shown = run.wait_with_output().unwrap().stdout;
        assert_eq!(String::from_utf8(shown).unwrap(), "last words\n");
    }
}

#[tokio::test]
async fn two_signals_end_a_run_while_the_box_ends_with_the_daemon() {
    let home = PerTestBoxHome::new();
    let mut daemon = Daemon::start(&home).await;
    let up = home.path().join("up");
    let mut run = shimd(&home);
    run.args(["run", "--name", "stubborn", "idle"]);
    let mut run = run
        .args(ignore_sigterm(&up))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the payload is up", async || up.exists()).await;
    wait_until_running(&daemon, "stubborn").await;
    let shim = daemon.client.inspect("stubborn").await.unwrap().pid;
    daemon.signal(Signal::SIGKILL);
    daemon.wait().await;
    kill(run.id(), Signal::SIGINT);
    kill(run.id(), Signal::SIGTERM);
    assert!(matches!(
        wait_for_exit(&mut run).await.code(),
        Some(130 | 143)
    ));
    // Skips the grace period that the shim gives its payload.
    let shim = shim.unwrap();
    kill(shim, vmm_shim::KILL_SIGNAL);
    eventually("the shim ends", async || {
        matches!(state_of(shim), None | Some('Z'))
    })
    .await;
}

#[tokio::test]
async fn run_fails_if_the_box_outlives_the_daemon() {
    let home = PerTestBoxHome::new();
    let mut daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    command.args(["run", "--outlive", "--name", "keeper", "idle"]);
    let mut run = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until_running(&daemon, "keeper").await;
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().await.success());
    assert_eq!(wait_for_exit(&mut run).await.code(), Some(125));
    let err = String::from_utf8(run.wait_with_output().unwrap().stderr).unwrap();
    assert!(err.contains("the daemon ended before the box"), "{err}");
    let next = Daemon::start(&home).await;
    next.client.remove("keeper", true).await.unwrap();
    next.shut_down().await;
}

#[tokio::test]
async fn payload_cannot_block_or_mislead_run_by_replacing_the_console() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let secret = home.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    for replace in ["mkfifo", "ln -s $SECRET"] {
        let script = format!("cd $VMM_BOX_DIR; rm console.log; {replace} console.log; exit 7");
        let mut run = shimd(&home);
        run.args(["run", "-e", &format!("SECRET={}", secret.display())]);
        run.args(["idle", "sh", "-c", &script]);
        run.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut run = run.spawn().unwrap();
        assert_eq!(wait_for_exit(&mut run).await.code(), Some(7), "{replace}");
        let shown = run.wait_with_output().unwrap().stdout;
        assert_eq!(String::from_utf8(shown).unwrap(), "", "{replace}");
    }
    daemon.shut_down().await;
}

async fn wait_until_running(daemon: &Daemon, name: &str) {
    eventually("the box runs", async || {
        let found = daemon.client.inspect(name).await;
        found.is_ok_and(|found| found.status == BoxStatus::Running)
    })
    .await;
}
