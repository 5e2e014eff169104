//! How a VMM runtime recovers the boxes that it finds when it opens a home.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::boxes::{
    box_dir, exits_on_go, leave_running, open_runtime, options, remove_all, script, send_go,
    sleeping, start_box,
};
use common::own_process::{block_on, in_own_process};
use common::recycled_pid::sleeper_with_pid;
use common::work::reads;
use common::{as_pid, eventually, is_gone, is_zombie, kernel_is_at_least, kill, state_of};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use vmm_protocol::procfs;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Ending, Removal, VmmRuntime};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_live_shim_is_recovered_and_its_exit_code_is_reported() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, exits_on_go(23)).await;
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(found.status, BoxStatus::Running);
    assert_eq!((found.pid, found.payload_pid), (bx.pid, bx.payload_pid));
    assert_eq!(runtime.metrics().await.num_running_boxes, 1);
    send_go(&home, &bx.id);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!(
        (ended.status, ended.exit_code),
        (BoxStatus::Failed, Some(23))
    );
    assert_eq!(runtime.metrics().await.num_running_boxes, 0);
}

#[tokio::test]
async fn a_recovered_box_can_be_stopped_and_removed() {
    let home = PerTestBoxHome::new();
    let left = leave_running(&home, sleeping()).await;
    let runtime = open_runtime(&home).await;
    let stopped = runtime.stop(&left.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(15))
    );
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;

    let left = leave_running(&home, sleeping()).await;
    let runtime = open_runtime(&home).await;
    runtime.remove(&left.id, Removal::Force).await.unwrap();
    assert!(is_gone(left.pid.unwrap()));
    assert!(!box_dir(&home, &left.id).exists());
}

#[tokio::test]
async fn the_ending_of_a_dead_shim_comes_from_its_exit_file() {
    let home = PerTestBoxHome::new();
    let quiet = leave_running(&home, exits_on_go(0)).await;
    let failing = leave_running(&home, exits_on_go(9)).await;
    let killed = leave_running(&home, sleeping()).await;
    send_go(&home, &quiet.id);
    send_go(&home, &failing.id);
    kill(killed.pid.unwrap(), Signal::SIGKILL);
    for info in [&quiet, &failing, &killed] {
        eventually("the shim exits", || is_gone(info.pid.unwrap())).await;
    }
    for _ in 0..2 {
        let runtime = open_runtime(&home).await;
        let info = runtime.info(&quiet.id).await.unwrap();
        assert_eq!((info.status, info.exit_code), (BoxStatus::Stopped, Some(0)));
        let info = runtime.info(&failing.id).await.unwrap();
        assert_eq!((info.status, info.exit_code), (BoxStatus::Failed, Some(9)));
        let info = runtime.info(&killed.id).await.unwrap();
        assert_eq!((info.status, info.ending), (BoxStatus::Failed, None));
        assert_eq!(runtime.metrics().await.num_running_boxes, 0);
        runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    }
}

#[tokio::test]
async fn a_process_with_a_reused_pid_is_left_alone() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    let pid = bx.pid.unwrap();
    kill(pid, Signal::SIGKILL);
    // The session of the payload has the same id, so the payload must be gone too.
    for pid in [pid, bx.payload_pid.unwrap()] {
        eventually("the shim exits", || is_gone(pid)).await;
    }
    let Some(other) = sleeper_with_pid(pid) else {
        return;
    };
    let runtime = open_runtime(&home).await;
    let info = runtime.info(&bx.id).await.unwrap();
    assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
    runtime.stop(&bx.id).await.unwrap();
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    assert!(matches!(state_of(other), Some('S' | 'R')));
    kill(other, Signal::SIGKILL);
    nix::sys::wait::waitpid(common::as_pid(other), None).unwrap();
}

/// The shim dies, and another process gets its pid, while the VMM runtime attaches to the shim.
#[test]
fn a_process_that_reuses_the_pid_during_recovery_is_left_alone() {
    let test = "a_process_that_reuses_the_pid_during_recovery_is_left_alone";
    common::own_process::in_own_process(test, || {
        common::own_process::block_on(async {
            let home = PerTestBoxHome::new();
            let bx = leave_running(&home, sleeping()).await;
            let pid = bx.pid.unwrap();
            let new_process = std::sync::Arc::new(std::sync::Mutex::new(None));
            let recycle = {
                let (new_process, payload) = (new_process.clone(), bx.payload_pid.unwrap());
                move || {
                    kill(pid, Signal::SIGKILL);
                    for pid in [pid, payload] {
                        common::eventually_blocking("the process exits", || is_gone(pid));
                    }
                    *new_process.lock().unwrap() = sleeper_with_pid(pid);
                }
            };
            fail::cfg_callback("vmm_runtime::attach", recycle).unwrap();
            let runtime = open_runtime(&home).await;
            fail::remove("vmm_runtime::attach");
            let info = runtime.info(&bx.id).await.unwrap();
            assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
            runtime.remove(&bx.id, Removal::Force).await.unwrap();
            runtime.shutdown(SHUTDOWN_TIMEOUT).await;
            let Some(other) = *new_process.lock().unwrap() else {
                return;
            };
            assert!(matches!(state_of(other), Some('S' | 'R')));
            kill(other, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(common::as_pid(other), None);
        });
    });
}

/// The shim of an attached box ends after its VMM runtime is gone. A start waits for that.
#[tokio::test]
async fn a_start_waits_for_a_shim_that_is_ending() {
    let home = PerTestBoxHome::new();
    let slow = "trap 'sleep 0.3; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let runtime = open_runtime(&home).await;
    let old = start_box(&runtime, script(slow)).await;
    let console = box_dir(&home, &old.id).join("console.log");
    eventually("the payload sets its trap", || {
        fs::read_to_string(&console).is_ok_and(|text| text.contains("up"))
    })
    .await;
    drop(runtime);
    let runtime = open_runtime(&home).await;
    let new = runtime.start(&old.id).await.unwrap();
    assert_ne!(new.pid, old.pid);
    eventually("the old shim exits", || is_gone(old.pid.unwrap())).await;
    assert_eq!(new.status, BoxStatus::Running);
    remove_all(&runtime).await;
}

#[tokio::test]
async fn an_ending_survives_the_runtime() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    let runtime = open_runtime(&home).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(&bx.id).await.unwrap();
    // The shim is not a child of this VMM runtime.
    if kernel_is_at_least(6, 15) {
        assert_eq!(ended.ending, Some(Ending::Signaled { signal: 9 }));
    }
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    let again = open_runtime(&home).await.info(&bx.id).await.unwrap();
    assert_eq!(again.ending, ended.ending);
}

#[tokio::test]
async fn descendants_of_a_payload_whose_shim_died_are_killed() {
    let home = PerTestBoxHome::new();
    let spec = script("sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait");
    let bx = leave_running(&home, spec).await;
    let orphan = common::boxes::orphan_of(&home, &bx.id).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    eventually("the shim exits", || is_gone(bx.pid.unwrap())).await;
    assert!(!is_gone(orphan));
    let _runtime = open_runtime(&home).await;
    eventually("the orphan exits", || is_gone(orphan)).await;
}

/// This process reaps a detached shim even after its VMM runtime has been shut down.
#[tokio::test]
async fn a_detached_shim_leaves_no_zombie_after_the_shutdown_of_its_runtime() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    eventually("the shim is reaped", || is_gone(bx.pid.unwrap())).await;
}

/// Two processes open the same home, one after the other.
#[test]
fn a_second_process_gets_the_exit_code_of_a_shim_it_did_not_spawn() {
    common::boxes::in_two_processes(
        "a_second_process_gets_the_exit_code_of_a_shim_it_did_not_spawn",
        |options| {
            common::own_process::block_on(async {
                let runtime = VmmRuntime::open(options).await.unwrap();
                for (name, spec) in [("code", exits_on_go(77)), ("killed", sleeping())] {
                    start_box(&runtime, spec.name(name).detached(true)).await;
                }
                runtime.shutdown(SHUTDOWN_TIMEOUT).await;
            });
        },
        |home, first| {
            assert!(first.status.success(), "{first:?}");
            common::own_process::block_on(async {
                let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
                let code = runtime.info("code").await.unwrap();
                let killed = runtime.info("killed").await.unwrap();
                assert_eq!(code.status, BoxStatus::Running);
                assert!(!procfs::is_child(code.pid.unwrap()));
                send_go(home, &code.id);
                kill(killed.pid.unwrap(), Signal::SIGKILL);
                let ended = runtime.wait("code").await.unwrap();
                assert_eq!(ended.exit_code, Some(77));
                let ended = runtime.wait("killed").await.unwrap();
                if common::kernel_is_at_least(6, 15) {
                    assert_eq!(ended.signal, Some(9));
                }
                remove_all(&runtime).await;
            });
        },
    );
}

const STAGE_VAR: &str = "SHIM_TEST_STAGE";
const STAGE_HOME_VAR: &str = "SHIM_TEST_STAGE_HOME";

/// As in a container whose pid 1 does not reap orphans.
#[test]
fn a_box_whose_shim_stays_a_zombie_can_be_removed() {
    let test = "a_box_whose_shim_stays_a_zombie_can_be_removed";
    in_own_process(test, || match std::env::var(STAGE_VAR).as_deref() {
        Ok(stage) => block_on(leave_or_remove(stage)),
        Err(_) => {
            nix::sys::prctl::set_child_subreaper(true).unwrap();
            let home = PerTestBoxHome::new();
            let run = |stage| {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
                command
                    .env(STAGE_VAR, stage)
                    .env(STAGE_HOME_VAR, home.path());
                assert!(command.status().unwrap().success(), "{stage}");
            };
            run("leave");
            let pid = fs::read_to_string(home.path().join("left")).unwrap();
            let pid = pid.parse().unwrap();
            run("remove");
            assert!(is_zombie(pid));
            waitpid(as_pid(pid), None).unwrap();
        }
    });
}

async fn leave_or_remove(stage: &str) {
    let home = PathBuf::from(std::env::var_os(STAGE_HOME_VAR).unwrap());
    let runtime = VmmRuntime::open(options(&home)).await.unwrap();
    if stage == "leave" {
        let bx = start_box(&runtime, sleeping().detached(true)).await;
        fs::write(home.join("left"), bx.pid.unwrap().to_string()).unwrap();
    } else {
        let before = reads();
        remove_all(&runtime).await;
        // Each look at the zombie would add two.
        let made = reads() - before;
        assert!(made < 300, "{made} reads");
        assert!(runtime.list().await.is_empty());
    }
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
}
