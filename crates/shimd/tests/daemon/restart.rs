use nix::sys::signal::Signal;
use vmm_rest::wire::{BoxStatus, CreateBoxRequest};
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::Daemon;
use crate::process::{eventually, is_gone, kill, state_of};

#[tokio::test]
async fn a_daemon_that_was_killed_finds_the_boxes_that_outlived_it() {
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
    killed.ended().await;

    let daemon = Daemon::start(&home).await;
    let found = daemon.client.inspect("keeper").await.unwrap();
    assert_eq!(
        (found.status, found.pid),
        (BoxStatus::Running, Some(keeper))
    );
    // A shim whose daemon is gone is adopted, and collected, by somebody else.
    eventually("the attached shim ends", async || {
        matches!(state_of(attached), None | Some('Z'))
    })
    .await;
    eventually("its end is known", async || {
        let ended = daemon.client.inspect("attached").await.unwrap();
        ended.status != BoxStatus::Running && ended.pid.is_none()
    })
    .await;

    kill(victim, Signal::SIGKILL);
    daemon.until("victim", BoxStatus::Failed).await;
    for name in ["keeper", "victim", "attached"] {
        daemon.client.remove(name, true).await.unwrap();
    }
    assert!(is_gone(keeper));
    daemon.end().await;
}

#[tokio::test]
async fn boxes_that_outlive_the_daemon_go_on_when_it_is_restarted_in_order() {
    let home = PerTestBoxHome::new();
    let first = Daemon::start(&home).await;
    let request = CreateBoxRequest::of("idle").name("keeper").detach(true);
    first.client.create(&request).await.unwrap();
    let shim = first.client.start("keeper").await.unwrap().pid;
    first.end().await;
    let second = Daemon::start(&home).await;
    let found = second.client.inspect("keeper").await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, shim));
    second.client.remove("keeper", true).await.unwrap();
    second.end().await;
}
