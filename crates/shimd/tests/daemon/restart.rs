use nix::sys::signal::Signal;
use vmm_rest::wire::{BoxStatus, CreateBoxRequest};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::Daemon;
use crate::process::{eventually, kill, state_of};

#[tokio::test]
async fn daemon_finds_detached_boxes_after_a_kill() {
    let home = PerTestBoxHome::new();
    let mut killed = Daemon::start(&home).await;
    let mut shims = Vec::new();
    for (name, outlives) in [("keeper", true), ("victim", true), ("attached", false)] {
        let request = CreateBoxRequest::of("idle").name(name).detach(outlives);
        killed.client.create(&request).await.unwrap();
        shims.push(killed.client.start(name).await.unwrap().pid.unwrap());
    }
    let [keeper, victim, attached] = shims[..] else {
        unreachable!()
    };
    killed.signal(Signal::SIGKILL);
    killed.wait().await;

    let daemon = Daemon::start(&home).await;
    let found = daemon.client.inspect("keeper").await.unwrap();
    assert_eq!(
        (found.status, found.pid),
        (BoxStatus::Running, Some(keeper))
    );
    // The shim was adopted by init or a subreaper, which reaps it.
    eventually("the attached shim ends", async || {
        matches!(state_of(attached), None | Some('Z'))
    })
    .await;
    eventually("its exit is reported", async || {
        let ended = daemon.client.inspect("attached").await.unwrap();
        ended.status != BoxStatus::Running && ended.pid.is_none()
    })
    .await;

    kill(victim, Signal::SIGKILL);
    daemon.wait_until("victim", BoxStatus::Failed).await;
    for name in ["keeper", "victim", "attached"] {
        daemon.client.remove(name, true).await.unwrap();
    }
    // As above.
    assert!(matches!(state_of(keeper), None | Some('Z')));
    daemon.shut_down().await;
}

#[tokio::test]
async fn detached_boxes_keep_running_while_the_daemon_restarts() {
    let home = PerTestBoxHome::new();
    let first = Daemon::start(&home).await;
    let request = CreateBoxRequest::of("idle").name("keeper").detach(true);
    first.client.create(&request).await.unwrap();
    let shim = first.client.start("keeper").await.unwrap().pid;
    first.shut_down().await;
    let second = Daemon::start(&home).await;
    let found = second.client.inspect("keeper").await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, shim));
    second.client.remove("keeper", true).await.unwrap();
    second.shut_down().await;
}
