//! Boxes, and VMM runtimes that run them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use futures::StreamExt;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxEvent, BoxInfo, BoxSpec, BoxStatus, Events, Removal};
use vmm_runtime::{RuntimeOptions, ShimProgram, VmmRuntime};

use super::{DEADLINE, eventually, pause};

/// Builds the program `vmm-shim` and returns its path. `cargo test --test NAME` does not build it.
pub fn shim_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // target/<profile>/deps/<test>
        let test = env::current_exe().unwrap();
        let profile_dir = test.ancestors().nth(2).unwrap();
        let profile = match profile_dir.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            other => other,
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package=vmm-shim", "--bin=vmm-shim"])
            .args(["--profile", profile, "--target-dir"])
            .arg(profile_dir.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "cannot build vmm-shim");
        profile_dir.join("vmm-shim")
    })
}

pub fn options(home: &Path) -> RuntimeOptions {
    RuntimeOptions::new(home).shim_program(ShimProgram::at(shim_program()).unwrap())
}

pub async fn open_runtime(home: &PerTestBoxHome) -> VmmRuntime {
    VmmRuntime::open(options(home.path())).await.unwrap()
}

/// Returns a spec whose payload runs until it is stopped.
pub fn sleeping() -> BoxSpec {
    BoxSpec::new(["sleep", "1000"])
}

pub fn script(text: &str) -> BoxSpec {
    BoxSpec::new(["sh", "-c", text])
}

/// Returns a spec whose payload ignores SIGTERM. It prints `up` when it does.
pub fn ignores_sigterm() -> BoxSpec {
    script("trap '' TERM; echo up; while :; do sleep 0.01; done")
}

/// Returns a spec whose payload exits with `code` after [`send_go`].
pub fn exits_on_go(code: i32) -> BoxSpec {
    script(&format!(
        "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit {code}"
    ))
}

/// Creates the file `go` in the directory of a box.
pub fn send_go(home: &PerTestBoxHome, id: &str) {
    std::fs::write(box_dir(home, id).join("go"), "").unwrap();
}

pub fn box_dir(home: &PerTestBoxHome, id: &str) -> PathBuf {
    home.path().canonicalize().unwrap().join("boxes").join(id)
}

/// Creates and starts a box.
pub async fn start_box(runtime: &VmmRuntime, spec: BoxSpec) -> BoxInfo {
    let id = runtime.create(spec).await.unwrap().id;
    runtime.start(&id).await.unwrap()
}

/// Starts a detached box, and shuts down its VMM runtime.
pub async fn leave_running(home: &PerTestBoxHome, spec: BoxSpec) -> BoxInfo {
    let runtime = open_runtime(home).await;
    let bx = start_box(&runtime, spec.detached(true)).await;
    let report = runtime.shutdown(DEADLINE).await;
    assert!(report.left_running.contains(&bx.id));
    bx
}

/// Removes all boxes by force.
pub async fn remove_all(runtime: &VmmRuntime) {
    for info in runtime.list().await {
        runtime.remove(&info.id, Removal::Force).await.unwrap();
    }
}

/// Returns the path of the record of a shim.
pub fn shim_pid_file(home: &PerTestBoxHome, id: &str) -> PathBuf {
    box_dir(home, id).join("shim.pid")
}

/// Waits until the box has this status.
pub async fn wait_for_status(runtime: &VmmRuntime, id: &str, status: BoxStatus) -> BoxInfo {
    wait_for_info(runtime, id, |info| info.status == status).await
}

/// Waits until the box satisfies `condition`.
pub async fn wait_for_info(
    runtime: &VmmRuntime,
    id: &str,
    condition: impl Fn(&BoxInfo) -> bool,
) -> BoxInfo {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let info = runtime.info(id).await.unwrap();
        if condition(&info) {
            return info;
        }
        assert!(std::time::Instant::now() < deadline, "still {info:?}");
        pause().await;
    }
}

pub async fn next_event(events: &mut Events) -> BoxEvent {
    tokio::time::timeout(DEADLINE, events.next())
        .await
        .expect("no event")
        .expect("the event stream ended")
}

/// Returns the changes up to and including the first `last`.
pub async fn changes_up_to(events: &mut Events, last: BoxChange) -> Vec<BoxChange> {
    let mut changes = Vec::new();
    while changes.last() != Some(&last) {
        changes.push(next_event(events).await.change);
    }
    changes
}

/// Waits for the file `orphan` in the directory of a box, and returns the pid that the payload has
/// written to it.
pub async fn orphan_of(home: &PerTestBoxHome, id: &str) -> u32 {
    let file = box_dir(home, id).join("orphan");
    let mut text = String::new();
    eventually("the payload writes the pid of the orphan", || {
        text = std::fs::read_to_string(&file).unwrap_or_default();
        text.ends_with('\n')
    })
    .await;
    text.trim().parse().unwrap()
}

/// The variable that passes the home to the first process of [`in_two_processes`].
pub const HOME_VAR: &str = "SHIM_TEST_HOME_OF_ANOTHER_PROCESS";

/// Runs `first` in a process of its own, with a new home. Once that process has ended, no matter
/// how, runs `second` in this process with the same home.
pub fn in_two_processes(
    test: &str,
    first: impl FnOnce(RuntimeOptions),
    second: impl FnOnce(&PerTestBoxHome, Output),
) {
    if let Some(home) = env::var_os(HOME_VAR) {
        return first(options(Path::new(&home)));
    }
    let home = PerTestBoxHome::new();
    let output = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(HOME_VAR, home.path())
        .output()
        .unwrap();
    let has_run = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(has_run, "test {test} not found");
    second(&home, output);
}
