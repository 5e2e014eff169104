use std::process::Stdio;

use nix::sys::signal::Signal;
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, ignore_sigterm, read_log, serve};
use crate::process::{eventually, is_gone, kill, state_of};

#[tokio::test]
async fn every_stop_signal_stops_the_boxes_and_shuts_the_daemon_down() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let home = PerTestBoxHome::new();
        let mut daemon = Daemon::start(&home).await;
        let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
        let id = made.unwrap().box_id;
        let shim = daemon.client.start(&id).await.unwrap().pid.unwrap();
        daemon.signal(signal);
        assert_eq!(daemon.wait().await.code(), Some(0));
        assert!(is_gone(shim), "state {:?}", state_of(shim));
        assert!(!home.path().join("shimd.sock").exists());
        assert!(
            read_log(&home).contains(signal.as_str()),
            "{}",
            read_log(&home)
        );
    }
}

#[tokio::test]
async fn second_signal_ends_the_daemon_immediately() {
    let home = PerTestBoxHome::new();
    let mut daemon = Daemon::start(&home).await;
    let up = home.path().join("up");
    let request = CreateBoxRequest::of("idle").cmd(ignore_sigterm(&up));
    let id = daemon.client.create(&request).await.unwrap().box_id;
    let shim = daemon.client.start(&id).await.unwrap().pid.unwrap();
    eventually("the payload is up", async || up.exists()).await;
    daemon.signal(Signal::SIGTERM);
    eventually("the daemon handles the first signal", async || {
        read_log(&home).contains("shutting down")
    })
    .await;
    daemon.signal(Signal::SIGINT);
    // An orderly shutdown would exit with 0, after the grace period of the payload.
    assert_eq!(daemon.wait().await.code(), Some(128 + 2));
    assert!(
        !read_log(&home).contains("shut down"),
        "{}",
        read_log(&home)
    );
    // Skips the grace period that the shim gives its payload.
    kill(shim, vmm_shim::KILL_SIGNAL);
    eventually("the shim ends", async || {
        matches!(state_of(shim), None | Some('Z'))
    })
    .await;
}

#[tokio::test]
async fn only_one_daemon_can_use_a_home() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let refused = CommandOutput::of(serve(&home).stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    let holder = format!("process {}", daemon.pid());
    assert!(refused.err.contains(&holder), "{refused:?}");
    assert!(daemon.client.readiness().await.unwrap().ready);
    daemon.shut_down().await;
}
