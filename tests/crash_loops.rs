//! Boxes in a crash loop leave processors and processes to the others.

mod common;

use std::time::Duration;

use common::boxes::{open_runtime, sleeping, start_box, wait_for_info};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, kill};
use futures::{StreamExt, stream};
use nix::sys::signal::Signal;
use vmm_protocol::procfs;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxSpec, BoxStatus, Removal, RestartPolicy, VmmRuntime};

const BOXES: usize = 1000;

/// More than the restarts that run at once, and the start of the test, on a busy machine.
const MAX_STARTS: u64 = 25;
const MAX_CHILDREN: usize = 100;

/// Less than 8 KiB per box.
const MAX_GROWTH_KIB: u64 = 8000;

/// Runs a box through a crash, a restart, a stop and its removal.
async fn crash_once(runtime: &VmmRuntime) {
    let first = start_box(runtime, sleeping().restart(RestartPolicy::Always)).await;
    kill(first.pid.unwrap(), Signal::SIGKILL);
    let is_restarted = |info: &BoxInfo| info.status == BoxStatus::Running && info.pid != first.pid;
    let second = wait_for_info(runtime, &first.id, is_restarted).await;
    assert_eq!(second.restarts, 1);
    runtime.stop(&first.id).await.unwrap();
    let ended = runtime.wait(&first.id).await.unwrap();
    assert_eq!(
        (ended.status, ended.restarting),
        (BoxStatus::Stopped, false)
    );
    runtime.remove(&first.id, Removal::Ended).await.unwrap();
}

fn resident_kib() -> u64 {
    let field = procfs::status_field(std::process::id(), "VmRSS").unwrap();
    field.unwrap().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_thousand_boxes_in_a_crash_loop_do_not_delay_others() {
    let name = "a_thousand_boxes_in_a_crash_loop_do_not_delay_others";
    in_own_process(name, || {
        block_on(async {
            let home = PerTestBoxHome::new();
            let runtime = open_runtime(&home).await;
            let looping = || BoxSpec::new(["false"]).restart(RestartPolicy::Always);
            let starts = (0..BOXES).map(|_| start_box(&runtime, looping()));
            // Not all at once: starts by a user are not bounded.
            let boxes: Vec<_> = stream::iter(starts).buffer_unordered(8).collect().await;
            let memory = resident_kib();

            let (mut starts, mut children) = (0, 0);
            let crashes = async {
                for _ in 0..10 {
                    crash_once(&runtime).await;
                }
            };
            let samples = async {
                loop {
                    starts = runtime.count_boxes().await.starting.max(starts);
                    let now = procfs::children(std::process::id()).unwrap();
                    children = now.len().max(children);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                () = crashes => {}
                () = samples => {}
            }
            assert!(starts < MAX_STARTS, "{starts} starts at once");
            assert!(children < MAX_CHILDREN, "{children} children");
            // All of them go on, as often as a delay that doubles allows.
            for bx in &boxes {
                wait_for_info(&runtime, &bx.id, |info| info.restarts >= 2).await;
            }
            let metrics = runtime.metrics().await;
            let restarts = usize::try_from(metrics.boxes_restarted_total).unwrap();
            assert!(restarts < BOXES * 12, "{metrics:?}");
            let memory = resident_kib().saturating_sub(memory);
            assert!(memory < MAX_GROWTH_KIB, "{memory} KiB more");
            runtime.shutdown(DEADLINE).await;
        });
    });
}
