//! The orphans of a crashed shim are found without a control group.

mod common;

use common::boxes::{
    in_two_processes, open_runtime, options, orphan_of, script, start_box, wait_for_status,
};
use common::control_groups::hide_control_groups;
use common::own_process::{block_on, in_own_process};
use common::{eventually, is_gone, kill};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxStatus, VmmRuntime};

/// Kills the shim of a running box, and waits until the orphan is gone.
async fn crash(runtime: &VmmRuntime, home: &PerTestBoxHome, bx: &BoxInfo) {
    let orphan = orphan_of(home, &bx.id).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    wait_for_status(runtime, &bx.id, BoxStatus::Failed).await;
    eventually("the orphan exits", || is_gone(orphan)).await;
}

fn the_orphan_of_is_killed(test: &str, payload: &str) {
    in_own_process(test, || {
        hide_control_groups();
        block_on(async {
            let home = PerTestBoxHome::new();
            let runtime = open_runtime(&home).await;
            let bx = start_box(&runtime, script(payload)).await;
            crash(&runtime, &home, &bx).await;
        });
    });
}

#[test]
fn a_process_in_a_session_of_its_own_is_killed() {
    the_orphan_of_is_killed(
        "a_process_in_a_session_of_its_own_is_killed",
        "setsid sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait",
    );
}

#[test]
fn a_process_with_an_empty_environment_is_killed() {
    the_orphan_of_is_killed(
        "a_process_with_an_empty_environment_is_killed",
        "env -i sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait",
    );
}

/// The process in between has neither the session of the box nor its environment.
#[test]
fn a_process_below_one_that_cannot_be_identified_is_killed() {
    the_orphan_of_is_killed(
        "a_process_below_one_that_cannot_be_identified_is_killed",
        "env -i setsid sh -c 'VMM_BOX_DIR=$0 sleep 1000 & echo $! > $0/orphan; wait' $VMM_BOX_DIR & wait",
    );
}

#[test]
fn an_orphan_of_a_re_attached_shim_is_killed() {
    in_two_processes(
        "an_orphan_of_a_re_attached_shim_is_killed",
        |options| {
            hide_control_groups();
            block_on(async {
                let runtime = VmmRuntime::open(options).await.unwrap();
                let payload = "setsid sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait";
                let spec = script(payload).name("left").detached(true);
                start_box(&runtime, spec).await;
                runtime.shutdown(common::DEADLINE).await;
            });
        },
        |home, first| {
            assert!(first.status.success(), "{first:?}");
            block_on(async {
                let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
                let bx = runtime.info("left").await.unwrap();
                assert_eq!(bx.status, BoxStatus::Running);
                crash(&runtime, home, &bx).await;
            });
        },
    );
}
