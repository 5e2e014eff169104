use std::process::Stdio;

use nix::sys::signal::Signal;
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, Said, deaf, logged, serve};
use crate::process::{eventually, is_gone, kill, state_of};

#[tokio::test]
async fn any_signal_stops_the_boxes_and_ends_the_daemon_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let home = PerTestBoxHome::new();
        let mut daemon = Daemon::start(&home).await;
        let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
        let id = made.unwrap().box_id;
        let shim = daemon.client.start(&id).await.unwrap().pid.unwrap();
        daemon.signal(signal);
        assert_eq!(daemon.ended().await.code(), Some(0));
        assert!(is_gone(shim), "state {:?}", state_of(shim));
        assert!(!home.path().join("shimd.sock").exists());
        assert!(logged(&home).contains(signal.as_str()), "{}", logged(&home));
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_daemon_at_once() {
    let home = PerTestBoxHome::new();
    let mut daemon = Daemon::start(&home).await;
    let up = home.path().join("up");
    let request = CreateBoxRequest::of("idle").cmd(deaf(&up));
    let id = daemon.client.create(&request).await.unwrap().box_id;
    let shim = daemon.client.start(&id).await.unwrap().pid.unwrap();
    eventually("the payload is up", async || up.exists()).await;
    daemon.signal(Signal::SIGTERM);
    eventually("the first signal is heeded", async || {
        logged(&home).contains("shutting down")
    })
    .await;
    daemon.signal(Signal::SIGINT);
    // Not the 0 of an end in order, which the deaf payload would have delayed.
    assert_eq!(daemon.ended().await.code(), Some(128 + 2));
    assert!(!logged(&home).contains("shut down"), "{}", logged(&home));
    // Let go, it gives its payload a grace period; the test need not wait for that.
    kill(shim, vmm_shim::KILL_SIGNAL);
    eventually("the shim ends", async || {
        matches!(state_of(shim), None | Some('Z'))
    })
    .await;
}

#[tokio::test]
async fn a_home_has_one_daemon() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let refused = Said::of(serve(&home).stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    let holder = format!("process {}", daemon.pid());
    assert!(refused.err.contains(&holder), "{refused:?}");
    assert!(daemon.client.readiness().await.unwrap().ready);
    daemon.end().await;
}
