//! Helpers for tests of programs that run boxes.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_protocol::{BoxDir, ControlGroup, ProcessIdentity, procfs};

use crate::RuntimeOptions;
use crate::process::membership;

/// A temporary home that fails the test if a process is left behind. When it is dropped, it looks
/// for shims that were started under it and are alive or zombies, and for live processes that a
/// payload started. If it finds any, it kills the live ones, so that they do not disturb other
/// tests, and panics with the pid, state and box of each.
///
/// It waits up to two seconds for processes to end: a runtime may have released their watchdogs
/// just before.
///
/// Shims that another process started, for example a second runtime on the same home, count as
/// well. The exception is the zombie of a live parent whose box has been removed.
///
/// # Setup
///
/// A runtime needs a shim program, and a test is not one: the test harness owns its `main`, so
/// [`VmmRuntime::open`] fails with [`NotAShimProgram`]. An integration test uses the program of its
/// package, whose path cargo passes in `CARGO_BIN_EXE_<name>`:
///
/// ```toml
/// # Cargo.toml
/// [package]
/// name = "my-daemon"
/// edition = "2024"
///
/// [dependencies]
/// tokio = { version = "1", features = ["macros", "rt-multi-thread"] }
/// vmm-runtime = "0.1"
/// vmm-shim = "0.1"
///
/// [dev-dependencies]
/// vmm-runtime = { version = "0.1", features = ["testing"] }
/// ```
///
/// ```ignore
/// // src/main.rs
/// fn main() {
///     // First in `main`: the runtime starts this program again as the shim of each box.
///     vmm_shim::run_if_shim();
///     // ... open the runtime ...
/// }
/// ```
///
/// ```ignore
/// // tests/boxes.rs
/// use vmm_runtime::testing::PerTestBoxHome;
/// use vmm_runtime::{BoxSpec, ShimProgram, VmmRuntime};
///
/// #[tokio::test]
/// async fn a_box_exits_with_the_code_of_its_command() {
///     // Before the runtime, so that it is dropped after it.
///     let home = PerTestBoxHome::new();
///     let shim = ShimProgram::at(env!("CARGO_BIN_EXE_my-daemon")).unwrap();
///     let options = home.options().shim_program(shim);
///     let runtime = VmmRuntime::open(options).await.unwrap();
///
///     let spec = BoxSpec::new(["sh", "-c", "exit 3"]).name("job");
///     runtime.create(spec).await.unwrap();
///     runtime.start("job").await.unwrap();
///     let ended = runtime.wait("job").await.unwrap();
///     assert_eq!(ended.exit_code, Some(3));
/// }
/// ```
///
/// A library has no program. Put its tests in an unpublished package with such a `src/main.rs`.
///
/// [`NotAShimProgram`]: crate::ShimProgramError::NotAShimProgram
/// [`VmmRuntime::open`]: crate::VmmRuntime::open
#[derive(Debug)]
pub struct PerTestBoxHome {
    home: TempDir,
}

/// How long processes may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The shims that this process has started, with the directories of their boxes.
static SPAWNED_SHIMS: Mutex<Vec<(PathBuf, u32, Option<ProcessIdentity>)>> = Mutex::new(Vec::new());

/// Records that a shim was started for the box in `dir`.
pub(crate) fn record_spawn(dir: &Path, pid: u32) {
    let identity = ProcessIdentity::of(pid).ok().flatten();
    let mut spawned = SPAWNED_SHIMS.lock().unwrap_or_else(PoisonError::into_inner);
    spawned.push((dir.to_owned(), pid, identity));
}

impl PerTestBoxHome {
    /// Creates an empty home.
    ///
    /// # Panics
    ///
    /// If the directory cannot be created.
    #[expect(clippy::panic, reason = "a failed setup fails the test")]
    pub fn new() -> Self {
        let private = Permissions::from_mode(0o700);
        let mut builder = tempfile::Builder::new();
        match builder.prefix("boxes-").permissions(private).tempdir() {
            Ok(home) => Self { home },
            Err(error) => panic!("cannot create a temporary home: {error}"),
        }
    }

    /// Returns the path of the home.
    pub fn path(&self) -> &Path {
        self.home.path()
    }

    /// Returns options that open a runtime on this home. A test adds a
    /// [`shim_program`](RuntimeOptions::shim_program), see [Setup](Self#setup).
    pub fn options(&self) -> RuntimeOptions {
        RuntimeOptions::new(self.path())
    }

    /// Returns the processes that are left: by pid, a description of each.
    fn survivors(&self) -> BTreeMap<u32, String> {
        let Ok(root) = self.path().canonicalize() else {
            return BTreeMap::new();
        };
        let mut survivors = BTreeMap::new();
        let mut add = |pid: u32, dir: &Path| {
            if let Ok(Some(state)) = procfs::status_field(pid, "State") {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                survivors.insert(pid, format!("pid {pid}, state {state}, box {name}"));
            }
        };
        for (dir, pid, identity) in &*SPAWNED_SHIMS.lock().unwrap_or_else(PoisonError::into_inner) {
            if dir.starts_with(&root) && is_shim_or_zombie(*pid, identity.as_ref()) {
                add(*pid, dir);
            }
        }
        for pid in procfs::pids().into_iter().flatten() {
            let shim = membership::shim_of(pid).ok().flatten().map(|(_, dir)| dir);
            let warm_shim = || membership::boxes_of_warm_shim(pid).ok().flatten();
            if let Some(dir) = shim
                .or_else(warm_shim)
                .or_else(|| membership::box_dir_of(pid).ok().flatten())
                && dir.starts_with(&root)
            {
                add(pid, &dir);
            }
        }
        for dir in box_dirs(&root) {
            if let Ok(Some(record)) = BoxDir::new(&dir).shim_record()
                && is_shim_or_zombie(record.pid, record.identity.as_ref())
            {
                add(record.pid, &dir);
            }
        }
        survivors
    }
}

/// Returns the directories of the boxes in this home.
fn box_dirs(root: &Path) -> impl Iterator<Item = PathBuf> {
    let boxes = std::fs::read_dir(root.join("boxes"));
    boxes.into_iter().flatten().flatten().map(|dir| dir.path())
}

impl Default for PerTestBoxHome {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns whether the process `pid` has this identity, or is a zombie.
fn is_shim_or_zombie(pid: u32, identity: Option<&ProcessIdentity>) -> bool {
    match (ProcessIdentity::of(pid), identity) {
        (Ok(Some(now)), Some(then)) => now.is_same(then),
        (Ok(None), _) => procfs::is_zombie(pid),
        _ => false,
    }
}

impl Drop for PerTestBoxHome {
    #[expect(clippy::panic, reason = "a panic fails the test")]
    fn drop(&mut self) {
        let deadline = Instant::now() + EXIT_TIMEOUT;
        let mut survivors = self.survivors();
        while !survivors.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            survivors = self.survivors();
        }
        for pid in survivors.keys() {
            if let Ok(process) = shim_reaper::Pidfd::open(*pid)
                && self.survivors().contains_key(pid)
            {
                let _ = process.send_signal(shim_reaper::Signal::SIGKILL);
            }
        }
        // No later runtime cleans up this home, so the control groups are removed here.
        for group in box_dirs(self.path()).filter_map(|dir| ControlGroup::of_box(&dir).ok()?) {
            let _ = group.remove();
        }
        if survivors.is_empty() {
            return;
        }
        let list: Vec<_> = survivors.into_values().collect();
        let home = self.path().display();
        let message = format!("processes left behind in {home}: {}", list.join("; "));
        if thread::panicking() {
            eprintln!("{message}");
        } else {
            panic!("{message}");
        }
    }
}
