//! What a runtime makes of the boxes that it finds when it opens a home.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::boxes::{dir_of, exits_on_go, go, open, options, script, sleeping, started};
use common::own_process::{block_on, in_own_process};
use common::recycled_pid::sleeper_with_pid;
use common::{
    Doomed, as_pid, eventually, is_gone, is_zombie, kernel_is_at_least, kill, sleeper, state_of,
};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxStatus, Ending, PidRecord, RuntimeError, VmmRuntime};

const LIMIT: Duration = Duration::from_secs(60);

/// A detached box that runs, and whose runtime has been shut down.
async fn left_running(home: &PerTestBoxHome, spec: vmm_runtime::BoxSpec) -> BoxInfo {
    let runtime = open(home).await;
    let running = started(&runtime, spec.detached(true)).await;
    let report = runtime.shutdown(LIMIT).await;
    assert!(report.left_running.contains(&running.id));
    running
}

fn shim_pid(home: &PerTestBoxHome, id: &str) -> std::path::PathBuf {
    dir_of(home, id).join("shim.pid")
}

async fn clear(runtime: &VmmRuntime) {
    for info in runtime.list().await {
        runtime.remove(&info.id, true).await.unwrap();
    }
}

#[tokio::test]
async fn a_live_shim_is_running_again_and_its_exit_code_is_reported() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, exits_on_go(23)).await;
    let runtime = open(&home).await;
    let found = runtime.info(&left.id).await.unwrap();
    assert_eq!(found.status, BoxStatus::Running);
    assert_eq!((found.pid, found.payload_pid), (left.pid, left.payload_pid));
    assert_eq!(runtime.metrics().await.num_running_boxes, 1);
    go(&home, &left.id);
    let ended = runtime.wait(&left.id).await.unwrap();
    assert_eq!(
        (ended.status, ended.exit_code),
        (BoxStatus::Failed, Some(23))
    );
    assert_eq!(runtime.metrics().await.num_running_boxes, 0);
}

#[tokio::test]
async fn a_live_shim_can_be_stopped_and_removed() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    let runtime = open(&home).await;
    let stopped = runtime.stop(&left.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(15))
    );
    runtime.shutdown(LIMIT).await;

    let left = left_running(&home, sleeping()).await;
    let runtime = open(&home).await;
    runtime.remove(&left.id, true).await.unwrap();
    assert!(is_gone(left.pid.unwrap()));
    assert!(!dir_of(&home, &left.id).exists());
}

#[tokio::test]
async fn a_dead_shim_has_ended_as_its_exit_file_says() {
    let home = PerTestBoxHome::new();
    let quiet = left_running(&home, exits_on_go(0)).await;
    let failing = left_running(&home, exits_on_go(9)).await;
    let killed = left_running(&home, sleeping()).await;
    go(&home, &quiet.id);
    go(&home, &failing.id);
    kill(killed.pid.unwrap(), Signal::SIGKILL);
    for info in [&quiet, &failing, &killed] {
        eventually("the end of the shim", || is_gone(info.pid.unwrap())).await;
    }
    for _ in 0..2 {
        let runtime = open(&home).await;
        let info = runtime.info(&quiet.id).await.unwrap();
        assert_eq!((info.status, info.exit_code), (BoxStatus::Stopped, Some(0)));
        let info = runtime.info(&failing.id).await.unwrap();
        assert_eq!((info.status, info.exit_code), (BoxStatus::Failed, Some(9)));
        let info = runtime.info(&killed.id).await.unwrap();
        assert_eq!((info.status, info.ending), (BoxStatus::Failed, None));
        assert_eq!(runtime.metrics().await.num_running_boxes, 0);
        runtime.shutdown(LIMIT).await;
    }
}

#[tokio::test]
async fn a_recycled_pid_is_left_alone() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    let pid = left.pid.unwrap();
    kill(pid, Signal::SIGKILL);
    // The number is also that of its session, of which the payload is.
    for pid in [pid, left.payload_pid.unwrap()] {
        eventually("the end of the shim", || is_gone(pid)).await;
    }
    let Some(stranger) = sleeper_with_pid(pid) else {
        return;
    };
    let runtime = open(&home).await;
    let info = runtime.info(&left.id).await.unwrap();
    assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
    runtime.stop(&left.id).await.unwrap();
    runtime.remove(&left.id, true).await.unwrap();
    runtime.shutdown(LIMIT).await;
    assert!(matches!(state_of(stranger), Some('S' | 'R')));
    kill(stranger, Signal::SIGKILL);
    nix::sys::wait::waitpid(common::as_pid(stranger), None).unwrap();
}

/// The shim dies, and another process gets its pid, while it is being re-attached to.
#[test]
fn a_pid_that_is_recycled_between_the_looks_is_left_alone() {
    let test = "a_pid_that_is_recycled_between_the_looks_is_left_alone";
    common::own_process::in_own_process(test, || {
        common::own_process::block_on(async {
            let home = PerTestBoxHome::new();
            let left = left_running(&home, sleeping()).await;
            let pid = left.pid.unwrap();
            let stranger = std::sync::Arc::new(std::sync::Mutex::new(None));
            let recycle = {
                let (stranger, payload) = (stranger.clone(), left.payload_pid.unwrap());
                move || {
                    kill(pid, Signal::SIGKILL);
                    for pid in [pid, payload] {
                        common::eventually_blocking("its end", || is_gone(pid));
                    }
                    *stranger.lock().unwrap() = sleeper_with_pid(pid);
                }
            };
            fail::cfg_callback("vmm_runtime::attach", recycle).unwrap();
            let runtime = open(&home).await;
            fail::remove("vmm_runtime::attach");
            let info = runtime.info(&left.id).await.unwrap();
            assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
            runtime.remove(&left.id, true).await.unwrap();
            runtime.shutdown(LIMIT).await;
            let Some(stranger) = *stranger.lock().unwrap() else {
                return;
            };
            assert!(matches!(state_of(stranger), Some('S' | 'R')));
            kill(stranger, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(common::as_pid(stranger), None);
        });
    });
}

#[tokio::test]
async fn a_payload_whose_record_names_another_process_is_not_shown() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    let record = PidRecord {
        pid: std::process::id(),
        ..PidRecord::of(left.pid.unwrap()).unwrap().unwrap()
    };
    record
        .write(&dir_of(&home, &left.id).join("payload.pid"))
        .unwrap();
    let runtime = open(&home).await;
    let found = runtime.info(&left.id).await.unwrap();
    assert_eq!((found.pid, found.payload_pid), (left.pid, None));
    clear(&runtime).await;
}

#[tokio::test]
async fn a_record_with_the_pid_alone_is_matched_by_what_the_process_is() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    let record = shim_pid(&home, &left.id);
    fs::write(&record, left.pid.unwrap().to_string()).unwrap();
    let runtime = open(&home).await;
    let found = runtime.info(&left.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, left.pid));
    let upgraded = PidRecord::read(&record).unwrap().unwrap();
    assert!(upgraded.identity.is_some());
    clear(&runtime).await;
}

#[tokio::test]
async fn a_record_with_the_pid_alone_of_another_process_is_that_of_a_dead_shim() {
    let home = PerTestBoxHome::new();
    let other = left_running(&home, sleeping()).await;
    let left = left_running(&home, sleeping()).await;
    kill(left.pid.unwrap(), Signal::SIGKILL);
    eventually("the end of the shim", || is_gone(left.pid.unwrap())).await;
    let mut doomed = Doomed::default();
    let stranger = doomed.spawn(sleeper()).unwrap();
    // A stranger, and the shim of another box.
    for pid in [stranger, other.pid.unwrap()] {
        fs::write(shim_pid(&home, &left.id), pid.to_string()).unwrap();
        let runtime = open(&home).await;
        let info = runtime.info(&left.id).await.unwrap();
        assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
        runtime.shutdown(LIMIT).await;
        assert!(!is_gone(pid));
    }
    clear(&open(&home).await).await;
}

#[tokio::test]
async fn a_live_shim_whose_record_is_garbage_or_gone_is_found_nevertheless() {
    for damage in [Some(""), Some("{\"pid\": 12"), Some("garbage"), None] {
        let home = PerTestBoxHome::new();
        let left = left_running(&home, sleeping()).await;
        let record = shim_pid(&home, &left.id);
        match damage {
            Some(text) => fs::write(&record, text).unwrap(),
            None => fs::remove_file(&record).unwrap(),
        }
        let runtime = open(&home).await;
        let found = runtime.info(&left.id).await.unwrap();
        assert_eq!((found.status, found.pid), (BoxStatus::Running, left.pid));
        clear(&runtime).await;
        assert!(is_gone(left.pid.unwrap()));
    }
}

/// A number that is somebody else's is no proof that the shim is dead.
#[tokio::test]
async fn a_live_shim_whose_record_names_another_is_found_and_its_payload_left_alone() {
    for wrong in ["1", "{\"pid\":1,\"start_time\":1,\"boot_id\":\"x\"}"] {
        let home = PerTestBoxHome::new();
        let left = left_running(&home, sleeping()).await;
        fs::write(shim_pid(&home, &left.id), wrong).unwrap();
        let runtime = open(&home).await;
        let found = runtime.info(&left.id).await.unwrap();
        assert_eq!((found.status, found.pid), (BoxStatus::Running, left.pid));
        assert!(!is_gone(left.payload_pid.unwrap()));
        clear(&runtime).await;
    }
}

#[tokio::test]
async fn a_live_shim_of_a_damaged_box_outlives_the_next_runtime_too() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    fs::write(dir_of(&home, &left.id).join("box.json"), "torn").unwrap();
    let report = open(&home).await.shutdown(LIMIT).await;
    assert_eq!(report.left_running, std::slice::from_ref(&left.id));
    assert!(!is_gone(left.pid.unwrap()));
    clear(&open(&home).await).await;
}

/// An attached box whose runtime is gone is about to end: a start awaits that.
#[tokio::test]
async fn a_start_does_not_take_a_shim_that_is_ending_for_its_own() {
    let home = PerTestBoxHome::new();
    let slow = "trap 'sleep 0.3; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let runtime = open(&home).await;
    let old = started(&runtime, script(slow)).await;
    let console = dir_of(&home, &old.id).join("console.log");
    eventually("its trap", || {
        fs::read_to_string(&console).is_ok_and(|text| text.contains("up"))
    })
    .await;
    drop(runtime);
    let runtime = open(&home).await;
    let new = runtime.start(&old.id).await.unwrap();
    assert_ne!(new.pid, old.pid);
    eventually("the end of the old one", || is_gone(old.pid.unwrap())).await;
    assert_eq!(new.status, BoxStatus::Running);
    clear(&runtime).await;
}

#[tokio::test]
async fn a_dead_shim_whose_record_is_garbage_is_named_with_its_file() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    kill(left.pid.unwrap(), Signal::SIGKILL);
    eventually("the end of the shim", || is_gone(left.pid.unwrap())).await;
    let record = shim_pid(&home, &left.id);
    fs::write(&record, "garbage").unwrap();
    let runtime = open(&home).await;
    let info = runtime.info(&left.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Failed);
    let error = info.error.unwrap();
    assert!(error.contains(record.to_str().unwrap()), "{error}");
    assert_eq!(fs::read_to_string(&record).unwrap(), "garbage");
    // It does not run, so it can be started again.
    runtime.start(&left.id).await.unwrap();
    clear(&runtime).await;
}

#[tokio::test]
async fn a_box_with_a_torn_spec_is_listed_as_failed_and_harms_no_other() {
    for text in ["", "{\"id\": \"x\"", "garbage", "[]"] {
        let home = PerTestBoxHome::new();
        let runtime = open(&home).await;
        let torn = runtime.create(sleeping().name("torn")).await.unwrap().id;
        let whole = runtime.create(sleeping().name("whole")).await.unwrap().id;
        runtime.shutdown(LIMIT).await;
        let file = dir_of(&home, &torn).join("box.json");
        fs::write(&file, text).unwrap();

        let runtime = open(&home).await;
        let info = runtime.info(&torn).await.unwrap();
        assert_eq!(info.status, BoxStatus::Failed);
        assert!(info.error.unwrap().contains(file.to_str().unwrap()));
        match runtime.start(&torn).await {
            Err(error @ RuntimeError::Damaged { .. }) => {
                assert!(
                    error.to_string().contains(file.to_str().unwrap()),
                    "{error}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        runtime.start("whole").await.unwrap();
        runtime.remove(&torn, false).await.unwrap();
        assert_eq!(runtime.list().await.len(), 1);
        runtime.remove(&whole, true).await.unwrap();
    }
}

#[tokio::test]
async fn a_live_shim_of_a_box_with_a_torn_spec_still_runs_and_can_be_ended() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    let file = dir_of(&home, &left.id).join("box.json");
    fs::write(&file, "torn").unwrap();
    let runtime = open(&home).await;
    let found = runtime.info(&left.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, left.pid));
    let stopped = runtime.stop(&left.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!(fs::read_to_string(&file).unwrap(), "torn");
}

#[tokio::test]
async fn a_torn_exit_file_is_named_and_the_box_goes_on() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, exits_on_go(3)).await;
    go(&home, &left.id);
    eventually("the end of the shim", || is_gone(left.pid.unwrap())).await;
    let file = dir_of(&home, &left.id).join("exit");
    fs::write(&file, "{\"pid\"").unwrap();
    let runtime = open(&home).await;
    let info = runtime.info(&left.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Failed);
    assert!(info.error.unwrap().contains(file.to_str().unwrap()));
    fs::remove_file(dir_of(&home, &left.id).join("go")).unwrap();
    runtime.start(&left.id).await.unwrap();
    clear(&runtime).await;
}

#[tokio::test]
async fn a_crash_report_survives_the_runtime() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    let runtime = open(&home).await;
    kill(left.pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(&left.id).await.unwrap();
    // It is no child of this runtime.
    if kernel_is_at_least(6, 15) {
        assert_eq!(ended.ending, Some(Ending::Signaled { signal: 9 }));
    }
    runtime.shutdown(LIMIT).await;
    let again = open(&home).await.info(&left.id).await.unwrap();
    assert_eq!(again.ending, ended.ending);
}

#[tokio::test]
async fn descendants_of_a_payload_whose_shim_died_meanwhile_are_ended() {
    let home = PerTestBoxHome::new();
    let spec = script("sleep 1000 & echo $! > $VMM_BOX_DIR/stray; wait");
    let left = left_running(&home, spec).await;
    let stray = common::boxes::stray_of(&home, &left.id).await;
    kill(left.pid.unwrap(), Signal::SIGKILL);
    eventually("the end of the shim", || is_gone(left.pid.unwrap())).await;
    assert!(!is_gone(stray));
    let _runtime = open(&home).await;
    eventually("the end of the stray", || is_gone(stray)).await;
}

#[tokio::test]
async fn what_was_half_created_or_half_removed_is_cleared_away() {
    let home = PerTestBoxHome::new();
    open(&home).await.shutdown(LIMIT).await;
    let boxes = home.path().join("boxes");
    for name in [".creating-x", ".removing-y"] {
        fs::create_dir(boxes.join(name)).unwrap();
        fs::write(boxes.join(name).join("box.json"), "{").unwrap();
    }
    let runtime = open(&home).await;
    assert!(runtime.list().await.is_empty());
    assert_eq!(fs::read_dir(&boxes).unwrap().count(), 0);
}

/// A shim that goes on is collected by this process when it ends, runtime or not.
#[tokio::test]
async fn a_detached_shim_leaves_no_zombie_after_the_shutdown_of_its_runtime() {
    let home = PerTestBoxHome::new();
    let left = left_running(&home, sleeping()).await;
    kill(left.pid.unwrap(), Signal::SIGKILL);
    eventually("it is collected", || is_gone(left.pid.unwrap())).await;
}

/// Two programs look at the same home, one after the other.
#[test]
fn a_second_process_reads_the_exit_code_of_a_shim_it_never_spawned() {
    common::boxes::in_two_processes(
        "a_second_process_reads_the_exit_code_of_a_shim_it_never_spawned",
        |options| {
            common::own_process::block_on(async {
                let runtime = VmmRuntime::open(options).await.unwrap();
                for (name, spec) in [("code", exits_on_go(77)), ("killed", sleeping())] {
                    started(&runtime, spec.name(name).detached(true)).await;
                }
                runtime.shutdown(LIMIT).await;
            });
        },
        |home, first| {
            assert!(first.status.success(), "{first:?}");
            common::own_process::block_on(async {
                let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
                let code = runtime.info("code").await.unwrap();
                let killed = runtime.info("killed").await.unwrap();
                assert_eq!(code.status, BoxStatus::Running);
                assert!(!is_child_of_this_process(code.pid.unwrap()));
                go(home, &code.id);
                kill(killed.pid.unwrap(), Signal::SIGKILL);
                let ended = runtime.wait("code").await.unwrap();
                assert_eq!(ended.exit_code, Some(77));
                let ended = runtime.wait("killed").await.unwrap();
                if common::kernel_is_at_least(6, 15) {
                    assert_eq!(ended.signal, Some(9));
                }
                clear(&runtime).await;
            });
        },
    );
}

fn is_child_of_this_process(pid: u32) -> bool {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(Path::new(&path)).unwrap();
    status.contains(&format!("PPid:\t{}\n", std::process::id()))
}

#[test]
fn the_helper_knows_a_child_when_it_sees_one() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    assert!(is_child_of_this_process(child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
}

const STAGE: &str = "SHIM_TEST_STAGE";
const STAGE_HOME: &str = "SHIM_TEST_STAGE_HOME";

/// As in a container whose pid 1 waits for nobody.
#[test]
fn a_box_whose_shim_nobody_collects_is_removed_nevertheless() {
    let test = "a_box_whose_shim_nobody_collects_is_removed_nevertheless";
    in_own_process(test, || match std::env::var(STAGE).as_deref() {
        Ok(stage) => block_on(leave_or_remove(stage)),
        Err(_) => {
            nix::sys::prctl::set_child_subreaper(true).unwrap();
            let home = PerTestBoxHome::new();
            let run = |stage| {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
                command.env(STAGE, stage).env(STAGE_HOME, home.path());
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
    let home = PathBuf::from(std::env::var_os(STAGE_HOME).unwrap());
    let runtime = VmmRuntime::open(options(&home)).await.unwrap();
    if stage == "leave" {
        let left = started(&runtime, sleeping().detached(true)).await;
        fs::write(home.join("left"), left.pid.unwrap().to_string()).unwrap();
    } else {
        clear(&runtime).await;
        assert!(runtime.list().await.is_empty());
    }
    runtime.shutdown(LIMIT).await;
}
