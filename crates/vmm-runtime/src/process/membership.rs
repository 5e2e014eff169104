//! Which box a process belongs to, according to `/proc`. Every result may be outdated when it
//! returns: a caller that acts on it holds a pidfd and reads again.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use vmm_protocol::procfs::{self, Stat};
use vmm_protocol::{BOX_DIR_VARIABLE, ControlGroup, Invocation};

/// How long the execution of a program may take: its pages may have to come from a disk.
const EXEC_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Returns the id and directory of the box whose shim the process claims to be, from its arguments.
/// Errors only on resource exhaustion.
pub(crate) fn shim_of(pid: u32) -> io::Result<Option<(String, PathBuf)>> {
    Ok(match Invocation::parse(procfs::arguments(pid)?) {
        // A payload can give itself any arguments.
        Some(Invocation::Box { id, dir }) if !is_payload(pid)? => Some((id, dir)),
        _ => None,
    })
}

/// Returns the directory of boxes for one of which the process claims to be a warm shim.
#[cfg(feature = "testing")]
pub(crate) fn boxes_of_warm_shim(pid: u32) -> io::Result<Option<PathBuf>> {
    Ok(match Invocation::parse(procfs::arguments(pid)?) {
        Some(Invocation::Warm { dir }) => Some(dir),
        _ => None,
    })
}

/// Returns whether the process is in the control group of a box that this process is not in. Shims
/// are in the group of their runtime. Errors only on resource exhaustion.
fn is_payload(pid: u32) -> io::Result<bool> {
    let groups = |pid| Ok::<_, io::Error>(box_groups(&procfs::control_groups(pid)?));
    let found = groups(pid)?;
    Ok(!found.is_empty() && !found.is_subset(&groups(process::id())?))
}

/// Returns the groups of boxes among these groups and the groups that contain them.
fn box_groups(groups: &[PathBuf]) -> HashSet<PathBuf> {
    let is_of_box = |group: &&Path| {
        let name = group.file_name().unwrap_or_default().as_bytes();
        name.starts_with(ControlGroup::NAME_PREFIX.as_bytes())
    };
    let all = groups.iter().flat_map(|group| group.ancestors());
    all.filter(is_of_box).map(Path::to_owned).collect()
}

/// Returns the directory of the box whose payload or health check started the process, from the
/// variable in its environment. `None` also for zombies and for processes of other users. Errors
/// only on resource exhaustion. Blocks for up to a second while the process executes a new program.
pub(crate) fn box_dir_of(pid: u32) -> io::Result<Option<PathBuf>> {
    let Some(mut environment) = procfs::environment(pid)? else {
        return Ok(None);
    };
    let deadline = Instant::now() + EXEC_TIMEOUT;
    while environment.is_empty() && Instant::now() < deadline {
        let is_executing = Stat::of(pid)?.is_some_and(|stat| stat.is_in_execve());
        environment = procfs::environment(pid)?.unwrap_or_default();
        if !is_executing {
            break;
        }
        thread::sleep(POLL_INTERVAL);
    }
    let dir = environment.split(|byte| *byte == 0).find_map(|variable| {
        variable
            .strip_prefix(BOX_DIR_VARIABLE.as_bytes())?
            .strip_prefix(b"=")
    });
    Ok(dir.map(|dir| PathBuf::from(OsStr::from_bytes(dir))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_boxes_are_found_at_any_depth() {
        let groups = [
            "/a/vmm-box-B.7/inner",
            "/a/other",
            "/vmm-box-A.1/vmm-box-B.7",
        ];
        let expected = ["/a/vmm-box-B.7", "/vmm-box-A.1", "/vmm-box-A.1/vmm-box-B.7"];
        assert_eq!(
            box_groups(&groups.map(PathBuf::from)),
            expected.map(PathBuf::from).into()
        );
    }
}
