use std::process::Stdio;

use nix::sys::signal::Signal;
use vmm_rest::wire::BoxStatus;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, Said, deaf, said, shimd};
use crate::process::{end_of, eventually, kill};

#[tokio::test]
async fn a_run_prints_what_the_payload_prints_and_ends_as_it_does() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let script = "echo out; echo err >&2; echo $A$B; pwd; exit 7";
    let mut command = shimd(&home);
    command
        .args(["run", "-e", "A=a", "--env", "B", "-w", "/usr", "idle"])
        .args(["sh", "-c", script])
        .env("B", "b");
    let told = Said::of(&mut command);
    assert_eq!((told.code, told.err.as_str()), (7, ""), "{told:?}");
    assert_eq!(told.out, "out\nerr\nab\n/usr\n");
    daemon.end().await;
}

#[tokio::test]
async fn much_output_is_printed_whole() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let told = said(&home, &["run", "--rm", "idle", "seq", "100000"]).out();
    assert_eq!(told.lines().count(), 100_000);
    assert!(told.ends_with("\n100000\n"));
    daemon.end().await;
}

#[tokio::test]
async fn what_cannot_be_run_has_the_exit_codes_of_docker() {
    let home = PerTestBoxHome::new();
    let without_daemon = said(&home, &["run", "idle", "true"]);
    assert_eq!(without_daemon.code, 125);
    assert!(without_daemon.err.contains("shimd serve"));

    let daemon = Daemon::start(&home).await;
    let code = |args: &[&str]| said(&home, &[&["run", "--rm"], args].concat()).code;
    assert_eq!(code(&["idle", "true"]), 0);
    assert_eq!(code(&["idle", "/nonexistent/program"]), 127);
    assert_eq!(code(&["idle", "/etc/passwd"]), 126);
    assert_eq!(code(&["idle", "sh", "-c", "kill -KILL $$"]), 137);
    assert_eq!(code(&["nonesuch"]), 125);
    assert_eq!(code(&["--cpus", "many", "idle"]), 125);
    assert_eq!(code(&["--cpus", "1000", "idle"]), 125);
    assert_eq!(code(&["--name", "a b", "idle"]), 125);
    let detached = said(&home, &["run", "--detach", "idle", "/nonexistent/program"]);
    assert_eq!((detached.code, detached.out.as_str()), (127, ""));
    assert!(detached.err.contains("/nonexistent/program"));
    let left = daemon.client.all_boxes().await.unwrap();
    assert_eq!(left.len(), 1, "--rm removes also what did not start");
    daemon.end().await;
}

#[tokio::test]
async fn an_interrupt_stops_the_box_and_a_second_one_kills_it() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut polite = shimd(&home);
    let mut polite = polite
        .args(["run", "--name", "polite", "idle"])
        .spawn()
        .unwrap();
    started(&daemon, "polite").await;
    kill(polite.id(), Signal::SIGINT);
    assert_eq!(end_of(&mut polite).await.code(), Some(128 + 15));
    let stopped = daemon.client.inspect("polite").await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);

    let up = home.path().join("up");
    let mut stubborn = shimd(&home);
    stubborn.args(["run", "--rm", "--name", "stubborn", "idle"]);
    let mut stubborn = stubborn.args(deaf(&up)).spawn().unwrap();
    eventually("the payload is up", async || up.exists()).await;
    started(&daemon, "stubborn").await;
    kill(stubborn.id(), Signal::SIGTERM);
    kill(stubborn.id(), Signal::SIGINT);
    assert_eq!(end_of(&mut stubborn).await.code(), Some(128 + 9));
    assert!(!daemon.client.exists("stubborn").await.unwrap());
    daemon.end().await;
}

#[tokio::test]
async fn a_box_that_nobody_hears_any_more_ends() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    command.args(["run", "--name", "chatty", "idle"]);
    command.args(["sh", "-c", "while :; do echo word; sleep 0.01; done"]);
    let mut chatty = command.stdout(Stdio::piped()).spawn().unwrap();
    started(&daemon, "chatty").await;
    drop(chatty.stdout.take());
    assert_eq!(end_of(&mut chatty).await.code(), Some(128 + 15));
    daemon.end().await;
}

#[tokio::test]
async fn a_run_whose_daemon_goes_away_has_failed() {
    let home = PerTestBoxHome::new();
    let mut daemon = Daemon::start(&home).await;
    let mut command = shimd(&home);
    command.args(["run", "--name", "orphan", "idle"]);
    let mut run = command.stderr(Stdio::null()).spawn().unwrap();
    started(&daemon, "orphan").await;
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().await.success());
    assert_eq!(end_of(&mut run).await.code(), Some(125));
}

async fn started(daemon: &Daemon, name: &str) {
    eventually("the box runs", async || {
        let found = daemon.client.inspect(name).await;
        found.is_ok_and(|found| found.status == BoxStatus::Running)
    })
    .await;
}
