//! What `/proc` tells of processes, `proc(5)`. Everything here may be out of date when it returns:
//! who acts on it holds a pidfd and looks again.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vmm_shim::{BOX_DIR_VARIABLE, Invocation};

/// Every process that can be seen.
pub(crate) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether it has exited and nobody has collected it.
pub(crate) fn is_zombie(pid: u32) -> bool {
    field(pid, "State").is_some_and(|state| state.starts_with('Z'))
}

/// Alive or a zombie.
#[cfg(feature = "testing")]
pub(crate) fn state(pid: u32) -> Option<String> {
    field(pid, "State")
}

/// Whether it is a child of this process.
pub(crate) fn is_child(pid: u32) -> bool {
    field(pid, "PPid").is_some_and(|parent| parent == std::process::id().to_string())
}

fn field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    String::from_utf8_lossy(&status)
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// Its session, `setsid(2)`: a shim leads one, and what it starts stays in that unless it leaves.
pub(crate) fn session_of(pid: u32) -> Option<u32> {
    field(pid, "NSsid")?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

pub(crate) fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The id and the directory of the box whose shim it says to be, by its arguments.
pub(crate) fn shim_of(pid: u32) -> Option<(String, PathBuf)> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
    match Invocation::parse(args.map(OsStr::to_owned))? {
        Invocation::Box { id, dir } => Some((id, dir)),
        _ => None,
    }
}

/// The directory of the box from whose payload, or for whose health check, it was started: it has
/// inherited the variable that says so. `None` also for processes of others, and for zombies.
pub(crate) fn box_dir_of(pid: u32) -> Option<PathBuf> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let dir = environment.split(|byte| *byte == 0).find_map(|variable| {
        variable
            .strip_prefix(BOX_DIR_VARIABLE.as_bytes())?
            .strip_prefix(b"=")
    })?;
    Some(PathBuf::from(OsStr::from_bytes(dir)))
}
