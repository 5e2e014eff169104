//! The watchdog of an attached shim: the shim ends with its VMM runtime.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::boxes::{open_runtime, sleeping, start_box};
use common::{KillOnDrop, eventually, is_gone};
use vmm_runtime::Removal;
use vmm_runtime::testing::PerTestBoxHome;

#[tokio::test]
async fn an_unrelated_child_does_not_keep_the_watchdog_open() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut children = KillOnDrop::default();
    let before = start_box(&runtime, sleeping()).await;
    let mut unrelated = Command::new("sleep");
    unrelated.arg("1000").stdin(Stdio::null());
    let unrelated = children.spawn(unrelated).unwrap();
    let after = start_box(&runtime, sleeping()).await;
    drop(runtime);
    for running in [before, after] {
        eventually("the shim exits", || is_gone(running.pid.unwrap())).await;
    }
    assert!(!is_gone(unrelated));
}

#[tokio::test]
async fn no_other_child_inherits_the_pipe_of_a_watchdog() {
    // The parent of the test may have leaked pipes to all its descendants.
    let inherited = pipes_of(std::process::id());
    let of = |pid: u32| {
        let mut pipes = pipes_of(pid);
        pipes.retain(|pipe| !inherited.contains(pipe));
        pipes
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let first = start_box(&runtime, sleeping()).await;
    let second = start_box(&runtime, sleeping()).await;
    let mut children = KillOnDrop::default();
    let mut unrelated = Command::new("sleep");
    unrelated.arg("1000").stdin(Stdio::null());
    let unrelated = children.spawn(unrelated).unwrap();
    // The shim also has a pipe from its payload, which the VMM runtime does not have.
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

/// Returns the pipes of a process, except those of the standard streams.
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
async fn a_detached_box_has_no_watchdog_and_outlives_its_runtime() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let attached = start_box(&runtime, sleeping()).await;
    let detached = start_box(&runtime, sleeping().detached(true)).await;
    drop(runtime);
    eventually("the attached box ends", || is_gone(attached.pid.unwrap())).await;
    assert!(!is_gone(detached.pid.unwrap()));
    assert!(!is_gone(detached.payload_pid.unwrap()));
    let runtime = open_runtime(&home).await;
    runtime.remove(&detached.id, Removal::Force).await.unwrap();
}
