//! For tests of programs that run boxes.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_protocol::{ControlGroup, FILES, PidRecord, ProcessIdentity};

use crate::RuntimeOptions;
use crate::process::procfs;

/// A temporary home that, when it is dropped, fails the test if a shim which was started under it
/// is alive or a zombie, or anything that a payload has started is alive; its panic names pid,
/// state and box. Live ones are killed first, so that they disturb no other test.
///
/// They get two seconds to end, for those whose runtime has just let go of them.
///
/// Shims of other processes, a second runtime on the same home, count as well, unless one is a
/// zombie of a process that goes on, and its box is removed.
///
/// ```no_run
/// use vmm_runtime::VmmRuntime;
/// use vmm_runtime::testing::PerTestBoxHome;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let home = PerTestBoxHome::new();
/// let runtime = VmmRuntime::open(home.options()).await?;
/// // ... whatever happens here leaves no shim behind ...
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PerTestBoxHome {
    home: TempDir,
}

/// How long what is dying may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The shims that this process has started, with the directories of their boxes.
static WITNESSED: Mutex<Vec<(PathBuf, u32, Option<ProcessIdentity>)>> = Mutex::new(Vec::new());

/// Keeps in mind that a shim was started for the box in this directory.
pub(crate) fn witness(dir: &Path, pid: u32) {
    let identity = ProcessIdentity::of(pid).ok().flatten();
    let mut witnessed = WITNESSED.lock().unwrap_or_else(PoisonError::into_inner);
    witnessed.push((dir.to_owned(), pid, identity));
}

impl PerTestBoxHome {
    /// An empty one.
    ///
    /// # Panics
    ///
    /// If no directory can be made.
    #[expect(clippy::panic, reason = "a test that cannot be set up has failed")]
    pub fn new() -> Self {
        let private = Permissions::from_mode(0o700);
        let mut builder = tempfile::Builder::new();
        match builder.prefix("boxes-").permissions(private).tempdir() {
            Ok(home) => Self { home },
            Err(error) => panic!("cannot make a temporary home: {error}"),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.home.path()
    }

    /// Options to open it with.
    pub fn options(&self) -> RuntimeOptions {
        RuntimeOptions::new(self.path())
    }

    /// What is left now: by pid, its state and box.
    fn survivors(&self) -> BTreeMap<u32, String> {
        let Ok(root) = self.path().canonicalize() else {
            return BTreeMap::new();
        };
        let mut survivors = BTreeMap::new();
        let mut add = |pid: u32, dir: &Path| {
            if let Some(state) = procfs::state(pid) {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                survivors.insert(pid, format!("pid {pid}, state {state}, box {name}"));
            }
        };
        for (dir, pid, identity) in &*WITNESSED.lock().unwrap_or_else(PoisonError::into_inner) {
            if dir.starts_with(&root) && is_or_was(*pid, identity.as_ref()) {
                add(*pid, dir);
            }
        }
        for pid in procfs::pids().into_iter().flatten() {
            let shim = procfs::shim_of(pid).ok().flatten().map(|(_, dir)| dir);
            if let Some(dir) = shim.or_else(|| procfs::box_dir_of(pid).ok().flatten())
                && dir.starts_with(&root)
            {
                add(pid, &dir);
            }
        }
        for dir in box_dirs(&root) {
            if let Ok(Some(record)) = PidRecord::read(&dir.join(FILES.shim_pid))
                && is_or_was(record.pid, record.identity.as_ref())
            {
                add(record.pid, &dir);
            }
        }
        survivors
    }
}

fn box_dirs(root: &Path) -> impl Iterator<Item = PathBuf> {
    let boxes = std::fs::read_dir(root.join("boxes"));
    boxes.into_iter().flatten().flatten().map(|dir| dir.path())
}

impl Default for PerTestBoxHome {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether it is the process of this identity, or a zombie with its pid.
fn is_or_was(pid: u32, identity: Option<&ProcessIdentity>) -> bool {
    match (ProcessIdentity::of(pid), identity) {
        (Ok(Some(now)), Some(then)) => now.is_same(then),
        (Ok(None), _) => procfs::is_zombie(pid),
        _ => false,
    }
}

impl Drop for PerTestBoxHome {
    #[expect(clippy::panic, reason = "it is how a test fails")]
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut survivors = self.survivors();
        while !survivors.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            survivors = self.survivors();
        }
        for pid in survivors.keys() {
            if let Ok(process) = shim_reaper::Pidfd::open(*pid)
                && self.survivors().contains_key(pid)
            {
                let _ = process.signal(shim_reaper::Signal::SIGKILL);
            }
        }
        // No runtime will open this home again, and clean up after a shim that was killed.
        for group in box_dirs(self.path()).filter_map(|dir| ControlGroup::of_box(&dir).ok()?) {
            let _ = group.remove();
        }
        if survivors.is_empty() {
            return;
        }
        let list: Vec<_> = survivors.into_values().collect();
        let home = self.path().display();
        let message = format!("processes were left behind in {home}: {}", list.join("; "));
        if thread::panicking() {
            eprintln!("{message}");
        } else {
            panic!("{message}");
        }
    }
}
