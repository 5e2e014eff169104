//! Reads `/proc`, `proc(5)`. Every result may be outdated when it returns: a caller that acts on it
//! holds a pidfd and reads again.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vmm_protocol::{BOX_DIR_VARIABLE, ControlGroup, Invocation, is_resource_exhaustion};

/// How long the execution of a program may take: its pages may have to come from a disk.
const EXEC_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The largest part of a file that is read. More than the kernel allows for the arguments and
/// environment of a program, `execve(2)`; a process can set a longer environment with `prctl(2)`.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Returns the pids of all visible processes.
pub(crate) fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Reads the beginning of a file. Returns `None` if the process is gone or belongs to another user.
/// Errors only on resource exhaustion.
fn read(pid: u32, file: &str) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{pid}/{file}"))
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if is_resource_exhaustion(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Returns whether the process has exited and has not been reaped.
pub(crate) fn is_zombie(pid: u32) -> bool {
    field(pid, "State").is_some_and(|state| state.starts_with('Z'))
}

/// Returns whether the process is stopped by a signal or a tracer.
pub(crate) fn is_stopped(pid: u32) -> bool {
    field(pid, "State").is_some_and(|state| state.starts_with(['T', 't']))
}

/// Returns the state of the process; `None` if it does not exist.
#[cfg(feature = "testing")]
pub(crate) fn state(pid: u32) -> Option<String> {
    field(pid, "State")
}

/// Returns whether the process is a child of this process.
pub(crate) fn is_child(pid: u32) -> bool {
    field(pid, "PPid").is_some_and(|parent| parent == std::process::id().to_string())
}

/// Returns a field of `/proc/<pid>/status`.
fn field(pid: u32, name: &str) -> Option<String> {
    let status = read(pid, "status").ok()??;
    field_of(&status, name)
}

/// Returns a field of the text of a `status` file.
fn field_of(status: &[u8], name: &str) -> Option<String> {
    String::from_utf8_lossy(status)
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// Returns the session of the process, `setsid(2)`. A shim leads one, and its descendants stay in
/// it unless they leave. Errors only on resource exhaustion.
pub(crate) fn session_of(pid: u32) -> io::Result<Option<u32>> {
    let status = read(pid, "status")?.unwrap_or_default();
    let sessions = field_of(&status, "NSsid");
    Ok(sessions.and_then(|sessions| sessions.split_ascii_whitespace().next()?.parse().ok()))
}

/// Returns whether the process exists, alive or as a zombie.
pub(crate) fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Returns the paths of the control groups of the process, one per hierarchy, `cgroups(7)`. Returns
/// none for a zombie, and omits a path longer than the kernel shows. Errors only on resource
/// exhaustion.
pub(crate) fn control_groups_of(pid: u32) -> io::Result<Vec<PathBuf>> {
    let groups = read(pid, "cgroup")?.unwrap_or_default();
    let lines = groups.split(|byte| *byte == b'\n');
    // The format is hierarchy:controllers:path.
    let paths = lines.filter_map(|line| line.splitn(3, |byte| *byte == b':').nth(2));
    Ok(paths
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect())
}

/// Returns the id and directory of the box whose shim the process claims to be, from its arguments.
/// Errors only on resource exhaustion.
pub(crate) fn shim_of(pid: u32) -> io::Result<Option<(String, PathBuf)>> {
    let line = read(pid, "cmdline")?.unwrap_or_default();
    let args = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
    Ok(match Invocation::parse(args.map(OsStr::to_owned)) {
        // A payload can give itself any arguments.
        Some(Invocation::Box { id, dir }) if !is_payload(pid)? => Some((id, dir)),
        _ => None,
    })
}

/// Returns whether the process is in the control group of a box that this process is not in. Shims
/// are in the group of their runtime. Errors only on resource exhaustion.
fn is_payload(pid: u32) -> io::Result<bool> {
    let groups = |pid| Ok::<_, io::Error>(box_groups(&read(pid, "cgroup")?.unwrap_or_default()));
    let found = groups(pid)?;
    Ok(!found.is_empty() && !found.is_subset(&groups(std::process::id())?))
}

/// Returns the lines of `/proc/<pid>/cgroup` that name groups of boxes, each cut after such a name.
fn box_groups(lines: &[u8]) -> HashSet<String> {
    let lines = String::from_utf8_lossy(lines);
    let of_line = |line: &str| {
        let starts = line.match_indices(ControlGroup::NAME_PREFIX);
        let ends = starts.map(|(start, _)| {
            let rest = &line[start..];
            start + rest.find('/').unwrap_or(rest.len())
        });
        ends.map(|end| line[..end].to_owned()).collect::<Vec<_>>()
    };
    lines.lines().flat_map(of_line).collect()
}

/// Returns the directory of the box whose payload or health check started the process, from the
/// variable in its environment. `None` also for zombies and for processes of other users. Errors
/// only on resource exhaustion. Blocks for up to a second while the process executes a new program.
pub(crate) fn box_dir_of(pid: u32) -> io::Result<Option<PathBuf>> {
    let Some(mut environment) = read(pid, "environ")? else {
        return Ok(None);
    };
    let deadline = Instant::now() + EXEC_TIMEOUT;
    while environment.is_empty() && Instant::now() < deadline {
        let is_executing = is_in_execve(pid)?;
        environment = read(pid, "environ")?.unwrap_or_default();
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

/// Returns whether the process is in the middle of an `execve(2)`: it has its new memory but not
/// yet its environment, which the kernel sets last. Errors only on resource exhaustion.
fn is_in_execve(pid: u32) -> io::Result<bool> {
    // vsize and env_end. Zombies and kernel threads have no memory.
    let fields = stat_fields(pid, [23, 51])?;
    Ok(fields.is_some_and(|[vsize, env_end]| vsize != 0 && env_end == 0))
}

/// Returns the start time of the process, also of a zombie, in clock ticks since boot. Errors only
/// on resource exhaustion.
pub(crate) fn start_time_of(pid: u32) -> io::Result<Option<u64>> {
    Ok(stat_fields(pid, [22])?.map(|[start_time]| start_time))
}

/// Returns fields of `/proc/<pid>/stat` by their numbers in `proc_pid_stat(5)`, from 4 on.
fn stat_fields<const N: usize>(pid: u32, numbers: [usize; N]) -> io::Result<Option<[u64; N]>> {
    let Some(stat) = read(pid, "stat")? else {
        return Ok(None);
    };
    let stat = String::from_utf8_lossy(&stat);
    // The second field, the name in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let fields: Vec<_> = fields.split(' ').collect();
    let parse = |number: usize| fields.get(number - 3)?.trim().parse().ok();
    let mut values = [0; N];
    for (value, number) in values.iter_mut().zip(numbers) {
        match parse(number) {
            Some(parsed) => *value = parsed,
            None => return Ok(None),
        }
    }
    Ok(Some(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_boxes_are_found_at_any_depth() {
        let lines = b"3:pids:/a/vmm-box-B.7/inner\n2:cpu:/a/other\n0::/vmm-box-A.1/vmm-box-B.7\n";
        let expected = [
            "3:pids:/a/vmm-box-B.7",
            "0::/vmm-box-A.1",
            "0::/vmm-box-A.1/vmm-box-B.7",
        ];
        assert_eq!(box_groups(lines), expected.map(str::to_owned).into());
    }

    #[test]
    fn a_huge_file_is_read_in_part() {
        // This file is larger than any memory, as an `environ` set with `prctl(2)` can be.
        if let Err(error) = File::open("/proc/self/pagemap") {
            eprintln!("SKIPPED: cannot open /proc/self/pagemap: {error}");
            return;
        }
        let read = read(std::process::id(), "pagemap").unwrap();
        assert_eq!(read.unwrap().len() as u64, MAX_FILE_BYTES);
    }
}
