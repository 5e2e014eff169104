//! Boxes, and runtimes to run them in.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use futures::StreamExt;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxEvent, BoxInfo, BoxSpec, BoxStatus, Events};
use vmm_runtime::{RuntimeOptions, VmmRuntime};

use super::{DEADLINE, eventually, pause};

/// The program `vmm-shim`, up to date: a test that is built alone does not build it.
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
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package=vmm-shim", "--bin=vmm-shim"])
            .args(["--profile", profile, "--target-dir"])
            .arg(profile_dir.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "vmm-shim cannot be built");
        profile_dir.join("vmm-shim")
    })
}

pub fn options(home: &Path) -> RuntimeOptions {
    RuntimeOptions::new(home).shim_program(shim_program())
}

pub async fn open(home: &PerTestBoxHome) -> VmmRuntime {
    VmmRuntime::open(options(home.path())).await.unwrap()
}

/// Runs until it is told to stop.
pub fn sleeping() -> BoxSpec {
    BoxSpec::new(["sleep", "1000"])
}

pub fn script(text: &str) -> BoxSpec {
    BoxSpec::new(["sh", "-c", text])
}

/// Ends with `code` as soon as there is a file `go` in its directory.
pub fn exits_on_go(code: i32) -> BoxSpec {
    script(&format!(
        "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit {code}"
    ))
}

pub fn dir_of(home: &PerTestBoxHome, id: &str) -> PathBuf {
    home.path().canonicalize().unwrap().join("boxes").join(id)
}

pub fn go(home: &PerTestBoxHome, id: &str) {
    std::fs::write(dir_of(home, id).join("go"), "").unwrap();
}

pub async fn started(runtime: &VmmRuntime, spec: BoxSpec) -> BoxInfo {
    let id = runtime.create(spec).await.unwrap().id;
    runtime.start(&id).await.unwrap()
}

pub async fn until(runtime: &VmmRuntime, id: &str, status: BoxStatus) -> BoxInfo {
    until_info(runtime, id, |info| info.status == status).await
}

pub async fn until_info(
    runtime: &VmmRuntime,
    id: &str,
    wanted: impl Fn(&BoxInfo) -> bool,
) -> BoxInfo {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let info = runtime.info(id).await.unwrap();
        if wanted(&info) {
            return info;
        }
        assert!(std::time::Instant::now() < deadline, "still {info:?}");
        pause().await;
    }
}

pub async fn next(events: &mut Events) -> BoxEvent {
    tokio::time::timeout(DEADLINE, events.next())
        .await
        .expect("no event")
        .expect("the end of the events")
}

/// Up to and including the first event of this kind.
pub async fn changes_up_to(events: &mut Events, last: BoxChange) -> Vec<BoxChange> {
    let mut changes = Vec::new();
    while changes.last() != Some(&last) {
        changes.push(next(events).await.change);
    }
    changes
}

/// The pid that a payload has written to the file `stray` in its directory, when it is there.
pub async fn stray_of(home: &PerTestBoxHome, id: &str) -> u32 {
    let file = dir_of(home, id).join("stray");
    let mut text = String::new();
    eventually("the stray", || {
        text = std::fs::read_to_string(&file).unwrap_or_default();
        text.ends_with('\n')
    })
    .await;
    text.trim().parse().unwrap()
}

const HOME: &str = "SHIM_TEST_HOME_OF_ANOTHER_PROCESS";

/// Runs `first` in a process of its own that has a home to itself; then, when that process has
/// ended in whatever way, `then` in this one on the same home.
pub fn in_two_processes(
    test: &str,
    first: impl FnOnce(RuntimeOptions),
    then: impl FnOnce(&PerTestBoxHome, Output),
) {
    if let Some(home) = env::var_os(HOME) {
        return first(options(Path::new(&home)));
    }
    let home = PerTestBoxHome::new();
    let output = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(HOME, home.path())
        .output()
        .unwrap();
    let ran = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(ran, "there is no test named {test}");
    then(&home, output);
}
