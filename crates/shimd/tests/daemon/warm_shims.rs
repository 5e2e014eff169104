use std::path::PathBuf;

use nix::sys::signal::Signal;
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::Daemon;
use crate::process::{eventually, state_of};

/// Returns the pids of the shims that wait for a box of this home.
fn warm_shims(home: &PerTestBoxHome) -> Vec<u32> {
    let boxes: PathBuf = home.path().canonicalize().unwrap().join("boxes");
    let start = format!("vmm-shim\0warm\0{}\0", boxes.display());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_warm = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(start.as_bytes())
    };
    pids.filter(is_warm).collect()
}

#[tokio::test]
async fn killed_daemon_leaves_no_warm_shim_and_the_next_one_takes_none_for_a_box() {
    let home = PerTestBoxHome::new();
    let mut killed = Daemon::start(&home).await;
    eventually("two shims wait", async || warm_shims(&home).len() == 2).await;
    let waiting = warm_shims(&home);
    killed.signal(Signal::SIGKILL);
    killed.wait().await;
    let next = Daemon::start(&home).await;
    assert!(next.client.all_boxes().await.unwrap().is_empty());
    eventually("they have ended", async || {
        // Their new parent reaps them.
        waiting
            .iter()
            .all(|pid| matches!(state_of(*pid), None | Some('Z')))
    })
    .await;
    next.shut_down().await;
    assert!(warm_shims(&home).is_empty());
}

#[tokio::test]
async fn daemon_starts_a_box_in_a_warm_shim() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    eventually("two shims wait", async || warm_shims(&home).len() == 2).await;
    let waiting = warm_shims(&home);
    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let running = daemon.client.start(&made.unwrap().box_id).await.unwrap();
    assert!(waiting.contains(&running.pid.unwrap()));
    daemon.shut_down().await;
}
