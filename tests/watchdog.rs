//! A shim ends with its runtime, whatever else the runtime has started.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::boxes::{open, sleeping, started};
use common::{Doomed, eventually, is_gone};
use vmm_runtime::testing::PerTestBoxHome;

#[tokio::test]
async fn it_closes_although_an_unrelated_child_was_spawned_in_between() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let mut children = Doomed::default();
    let before = started(&runtime, sleeping()).await;
    let mut unrelated = Command::new("sleep");
    unrelated.arg("1000").stdin(Stdio::null());
    let unrelated = children.spawn(unrelated).unwrap();
    let after = started(&runtime, sleeping()).await;
    drop(runtime);
    for running in [before, after] {
        eventually("the end of the shim", || is_gone(running.pid.unwrap())).await;
    }
    assert!(!is_gone(unrelated));
}

#[tokio::test]
async fn no_child_holds_a_pipe_of_the_runtimes_or_of_another_shim() {
    // The test's own parent may have left some to everybody.
    let inherited = pipes_of(std::process::id());
    let of = |pid: u32| {
        let mut pipes = pipes_of(pid);
        pipes.retain(|pipe| !inherited.contains(pipe));
        pipes
    };
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let first = started(&runtime, sleeping()).await;
    let second = started(&runtime, sleeping()).await;
    let mut children = Doomed::default();
    let mut unrelated = Command::new("sleep");
    unrelated.arg("1000").stdin(Stdio::null());
    let unrelated = children.spawn(unrelated).unwrap();
    // The shim also has a pipe from its payload, which the runtime does not hold.
    let of_runtime = of(std::process::id());
    let mut watchdogs = of(first.pid.unwrap());
    watchdogs.retain(|pipe| of_runtime.contains(pipe));
    assert!(!watchdogs.is_empty());
    for pid in [
        unrelated,
        first.payload_pid.unwrap(),
        second.pid.unwrap(),
        second.payload_pid.unwrap(),
    ] {
        let held = of(pid);
        assert!(
            held.iter().all(|pipe| !watchdogs.contains(pipe)),
            "{pid}: {held:?}"
        );
    }
    runtime.shutdown(Duration::from_secs(60)).await;
}

/// The pipes behind its descriptors above the standard ones.
fn pipes_of(pid: u32) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter(|entry| {
            let number = entry.file_name().to_str().unwrap().parse::<u32>().unwrap();
            number > 2
        })
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| Some(link.to_str()?.to_owned()))
        .filter(|link| link.starts_with("pipe:"))
        .collect()
}

#[tokio::test]
async fn a_detached_box_has_none_and_outlives_the_runtime() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let attached = started(&runtime, sleeping()).await;
    let detached = started(&runtime, sleeping().detached(true)).await;
    drop(runtime);
    eventually("the end of the attached box", || {
        is_gone(attached.pid.unwrap())
    })
    .await;
    assert!(!is_gone(detached.pid.unwrap()));
    assert!(!is_gone(detached.payload_pid.unwrap()));
    let runtime = open(&home).await;
    runtime.remove(&detached.id, true).await.unwrap();
}
