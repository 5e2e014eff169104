//! What `/proc` tells of processes, `proc(5)`. Everything here may be out of date when it returns:
//! who acts on it holds a pidfd and looks again.

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
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// More than the kernel lets arguments and environment of a program take together, `execve(2)`. What
/// a process says with `prctl(2)` to be its environment can be longer.
const LONGEST: u64 = 8 << 20;

/// Every process that can be seen.
pub(crate) fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// The beginning of a file. `None` where the process is gone or another user's. Fails only of want.
fn read(pid: u32, file: &str) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{pid}/{file}"))
        .and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if is_resource_exhaustion(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether it has exited and nobody has collected it.
pub(crate) fn is_zombie(pid: u32) -> bool {
    field(pid, "State").is_some_and(|state| state.starts_with('Z'))
}

/// Whether it is stopped by a signal, or by a tracer.
pub(crate) fn is_stopped(pid: u32) -> bool {
    field(pid, "State").is_some_and(|state| state.starts_with(['T', 't']))
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
    let status = read(pid, "status").ok()??;
    field_of(&status, name)
}

fn field_of(status: &[u8], name: &str) -> Option<String> {
    String::from_utf8_lossy(status)
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// Its session, `setsid(2)`: a shim leads one, and what it starts stays in that unless it leaves.
/// Fails only of want.
pub(crate) fn session_of(pid: u32) -> io::Result<Option<u32>> {
    let status = read(pid, "status")?.unwrap_or_default();
    let sessions = field_of(&status, "NSsid");
    Ok(sessions.and_then(|sessions| sessions.split_ascii_whitespace().next()?.parse().ok()))
}

pub(crate) fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The id and the directory of the box whose shim it says to be, by its arguments. Fails only
/// of want.
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

/// The lines of `/proc/<pid>/cgroup` that name groups of boxes, each cut behind the name of one.
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

/// The directory of the box from whose payload, or for whose health check, it was started: it has
/// inherited the variable that says so. `None` also for processes of others, and for zombies. Fails
/// only of want. Blocks for a while if it is just being executed.
pub(crate) fn box_dir_of(pid: u32) -> io::Result<Option<PathBuf>> {
    let Some(mut environment) = read(pid, "environ")? else {
        return Ok(None);
    };
    let deadline = Instant::now() + PATIENCE;
    while environment.is_empty() && Instant::now() < deadline {
        let is_early = is_being_executed(pid)?;
        environment = read(pid, "environ")?.unwrap_or_default();
        if !is_early {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    let dir = environment.split(|byte| *byte == 0).find_map(|variable| {
        variable
            .strip_prefix(BOX_DIR_VARIABLE.as_bytes())?
            .strip_prefix(b"=")
    });
    Ok(dir.map(|dir| PathBuf::from(OsStr::from_bytes(dir))))
}

/// Whether it has the memory of its new program, but not yet its environment, where it was left
/// none: the kernel puts that there last.
fn is_being_executed(pid: u32) -> io::Result<bool> {
    // vsize and env_end; neither a zombie nor a thread of the kernel has memory.
    let fields = stat_fields(pid, [23, 51])?;
    Ok(fields.is_some_and(|[vsize, env_end]| vsize != 0 && env_end == 0))
}

/// When it was started, in clock ticks since boot; also of a zombie. Fails only of want.
pub(crate) fn start_time_of(pid: u32) -> io::Result<Option<u64>> {
    Ok(stat_fields(pid, [22])?.map(|[start_time]| start_time))
}

/// Fields of `/proc/<pid>/stat`, by their numbers in `proc_pid_stat(5)`, from 4 on.
fn stat_fields<const N: usize>(pid: u32, numbers: [usize; N]) -> io::Result<Option<[u64; N]>> {
    let Some(stat) = read(pid, "stat")? else {
        return Ok(None);
    };
    let stat = String::from_utf8_lossy(&stat);
    // The name, which may hold anything, comes second, in parentheses.
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
    fn a_file_that_a_process_has_made_huge_is_read_in_part() {
        // Larger than any memory, as `prctl(2)` lets a process make its `environ`.
        if let Err(error) = File::open("/proc/self/pagemap") {
            eprintln!("SKIPPED: this kernel has no such file: {error}");
            return;
        }
        let read = read(std::process::id(), "pagemap").unwrap();
        assert_eq!(read.unwrap().len() as u64, LONGEST);
    }
}
