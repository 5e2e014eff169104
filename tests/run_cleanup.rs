//! The VMM runtime removes what a run has left, if its shim could not.

mod common;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::boxes::{options, sleeping, start_box};
use common::{eventually, is_gone, is_zombie, kill};
use nix::sys::signal::Signal;
use vmm_protocol::BoxDir;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxInfo, BoxStatus, Removal, RuntimeError, RuntimeOptions, VmmRuntime, with_causes,
};

/// What an engine makes for each run: a file beside the box directories.
struct FakeEngine {
    dir: PathBuf,
    /// The ids of the boxes of which it was asked to clean up.
    calls: Mutex<Vec<String>>,
    /// Whether it fails to.
    fails: AtomicBool,
}

impl FakeEngine {
    fn new(home: &PerTestBoxHome) -> Arc<Self> {
        Arc::new(Self {
            dir: home.path().to_owned(),
            calls: Mutex::default(),
            fails: AtomicBool::new(false),
        })
    }

    fn options(self: &Arc<Self>) -> RuntimeOptions {
        let engine = Arc::clone(self);
        options(&self.dir).payload_cleanup(move |payload, dir| {
            assert_eq!(payload.command, ["sleep", "1000"]);
            let record = BoxDir::new(dir).payload_record().unwrap().unwrap();
            assert!(is_gone(record.pid) || is_zombie(record.pid));
            let id = dir.file_name().unwrap().to_str().unwrap();
            engine.calls.lock().unwrap().push(id.to_owned());
            if engine.fails.load(Ordering::SeqCst) {
                return Err(io::Error::other("the tap is busy"));
            }
            Ok(())
        })
    }

    async fn open_runtime(self: &Arc<Self>) -> VmmRuntime {
        VmmRuntime::open(self.options()).await.unwrap()
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

/// Creates what a killed shim may leave in the directory of its box.
fn leave_files(bx: &BoxInfo) {
    for name in ["notify.sock", "paused", ".exit.tmp"] {
        std::fs::write(bx.dir.join(name), "").unwrap();
    }
    assert!(bx.dir.join("control.sock").exists());
}

/// Returns the names of the files of a box, without its logs.
fn files(bx: &BoxInfo) -> Vec<String> {
    let files = std::fs::read_dir(&bx.dir).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let logs = ["console.log", "shim.stderr", "cgroup"];
    let mut names: Vec<_> = names.filter(|name| !logs.contains(&&**name)).collect();
    names.sort();
    names
}

#[tokio::test]
async fn nothing_is_left_of_a_run_whose_shim_is_killed() {
    let home = PerTestBoxHome::new();
    let engine = FakeEngine::new(&home);
    let runtime = engine.open_runtime().await;
    let bx = start_box(&runtime, sleeping()).await;
    leave_files(&bx);
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(bx.id.as_str()).await.unwrap();
    assert_eq!(ended.status, BoxStatus::Failed);
    // Before the end is reported.
    assert_eq!(engine.calls(), [bx.id.as_str()]);
    assert_eq!(files(&bx), ["box.json", "payload.pid", "shim.pid"]);
}

#[tokio::test]
async fn nothing_is_left_of_a_run_whose_shim_is_killed_between_two_runtimes() {
    let home = PerTestBoxHome::new();
    let engine = FakeEngine::new(&home);
    let runtime = engine.open_runtime().await;
    let bx = start_box(&runtime, sleeping().detached(true)).await;
    drop(runtime);
    leave_files(&bx);
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let has_ended = |pid| is_gone(pid) || is_zombie(pid);
    eventually("the shim dies", || has_ended(bx.pid.unwrap())).await;
    assert!(engine.calls().is_empty());

    let runtime = engine.open_runtime().await;
    let ended = runtime.info(bx.id.as_str()).await.unwrap();
    assert_eq!(ended.status, BoxStatus::Failed);
    assert_eq!(engine.calls(), [bx.id.as_str()]);
    assert_eq!(files(&bx), ["box.json", "payload.pid", "shim.pid"]);
}

#[tokio::test]
async fn a_box_starts_and_is_removed_only_after_its_engine_has_cleaned_up() {
    let home = PerTestBoxHome::new();
    let engine = FakeEngine::new(&home);
    engine.fails.store(true, Ordering::SeqCst);
    let runtime = engine.open_runtime().await;
    let bx = start_box(&runtime, sleeping()).await;
    let id = bx.id.as_str();
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let error = runtime.wait(id).await.unwrap_err();
    assert!(
        matches!(error, RuntimeError::CleanupFailed { .. }),
        "{error:?}"
    );
    let message = with_causes(&error);
    assert!(message.ends_with(": the tap is busy"), "{message}");
    runtime.start(id).await.unwrap_err();
    runtime.remove(id, Removal::Force).await.unwrap_err();

    engine.fails.store(false, Ordering::SeqCst);
    let failed = engine.calls().len();
    eventually("the cleanup is tried again", || {
        engine.calls().len() > failed
    })
    .await;
    runtime.start(id).await.unwrap();
    runtime.remove(id, Removal::Force).await.unwrap();
    assert!(!bx.dir.exists());
}
