//! Reads processes and mounts from `/proc`, `proc(5)`.
//!
//! A payload chooses its name, its arguments, its environment, and the names of the control groups
//! within its own. No function therefore expects UTF-8, and every read is bounded.
//!
//! A result can be outdated when the function returns. A caller that acts on it opens a pidfd
//! first, reads again, and acts through the pidfd.
//!
//! The functions report resource exhaustion as an error, because it means nothing for the process.
//! A process that has exited, or that this process may not inspect, is not an error.

mod mounts;
mod stat;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process;

pub use mounts::{Mount, mounts};
pub use stat::Stat;

use crate::is_resource_exhaustion;

/// The largest part of a file that is read. More than the kernel allows for the arguments and
/// environment of a program, `execve(2)`; a process can set a longer environment with `prctl(2)`.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// The maximum size of a [`process_tree`], because its processes can fork faster than they are
/// listed.
pub(crate) const MAX_TREE_PROCESSES: usize = 10_000;

/// Returns the pids of all visible processes.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Returns true if the process exists, alive or as a zombie.
pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Returns true if the process has exited and has not been reaped. Returns false also if this
/// cannot be determined.
pub fn is_zombie(pid: u32) -> bool {
    has(pid, |stat| stat.is_zombie())
}

/// Returns true if the process is stopped by a signal or a tracer. Returns false also if this
/// cannot be determined.
pub fn is_stopped(pid: u32) -> bool {
    has(pid, |stat| matches!(stat.state, 'T' | 't'))
}

/// Returns true if the process is a child of the calling process. Returns false also if this cannot
/// be determined.
pub fn is_child(pid: u32) -> bool {
    has(pid, |stat| stat.parent == process::id())
}

fn has(pid: u32, property: impl FnOnce(&Stat) -> bool) -> bool {
    matches!(Stat::of(pid), Ok(Some(stat)) if property(&stat))
}

/// Returns the arguments of the process, including the name of its program. Returns none for a
/// zombie.
///
/// # Errors
///
/// If file descriptors or memory are exhausted.
pub fn arguments(pid: u32) -> io::Result<Vec<OsString>> {
    let line = unless_exhausted(read(pid, "cmdline"))?.unwrap_or_default();
    Ok(parse_arguments(&line))
}

/// Parses arguments, each of which ends with a NUL.
pub(crate) fn parse_arguments(line: &[u8]) -> Vec<OsString> {
    let args = line.split_inclusive(|byte| *byte == 0);
    let args = args.map(|arg| OsStr::from_bytes(arg.strip_suffix(&[0]).unwrap_or(arg)));
    args.map(OsStr::to_owned).collect()
}

/// Replaces the arguments of the calling process, which [`arguments`] and ps(1) show, and pads them
/// with NULs. Does not affect the arguments that this process has read before.
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if they are longer than the arguments with which the
/// process was started; the error of the operating system if they cannot be written.
pub(crate) fn replace_own_arguments(args: impl IntoIterator<Item = OsString>) -> io::Result<()> {
    let area = Stat::read(process::id())?.and_then(|stat| stat.arguments);
    let (start, end) = area.ok_or(io::ErrorKind::Unsupported)?;
    let mut line = Vec::new();
    for arg in args {
        line.extend_from_slice(arg.as_bytes());
        line.push(0);
    }
    let size = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    if line.len() > size {
        let message = format!("{} bytes of arguments do not fit into {size}", line.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    line.resize(size, 0);
    // The strings of the arguments belong to no object of the program, and remain terminated: std
    // copies them whenever it returns arguments.
    let memory = File::options().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&line, start)
}

/// Returns the environment with which the process was started: each variable as `NAME=value`,
/// separated by NULs. Returns `None` if it cannot be read, and nothing for a zombie or for a
/// process that [is executing a program](Stat::is_in_execve).
///
/// # Errors
///
/// If file descriptors or memory are exhausted.
pub fn environment(pid: u32) -> io::Result<Option<Vec<u8>>> {
    unless_exhausted(read(pid, "environ"))
}

/// Returns the paths of the control groups of the process, one per hierarchy, `cgroups(7)`. Returns
/// none for a zombie, and omits a path longer than the kernel shows.
///
/// # Errors
///
/// If file descriptors or memory are exhausted.
pub fn control_groups(pid: u32) -> io::Result<Vec<PathBuf>> {
    let groups = unless_exhausted(read(pid, "cgroup"))?.unwrap_or_default();
    Ok(parse_control_groups(&groups))
}

/// Parses lines of the format `hierarchy:controllers:path`.
pub(crate) fn parse_control_groups(groups: &[u8]) -> Vec<PathBuf> {
    let lines = groups.split(|byte| *byte == b'\n');
    let paths = lines.filter_map(|line| line.splitn(3, |byte| *byte == b':').nth(2));
    paths
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect()
}

/// Returns the children of all threads of the process, including zombies.
///
/// # Errors
///
/// If the process does not exist, if the kernel does not list children (`CONFIG_PROC_CHILDREN`,
/// Linux 3.5), or if file descriptors or memory are exhausted.
pub fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match read_bounded(&thread?.path().join("children")) {
            Ok(list) => children.extend(parse_pids(&list, MAX_FILE_BYTES)),
            // The thread has ended; its children are listed with another thread.
            Err(error) if is_process_gone(&error) && kernel_lists_children() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

fn kernel_lists_children() -> bool {
    fs::exists("/proc/thread-self/children").unwrap_or(false)
}

/// Parses pids that are separated by spaces. A list of `cut_at` bytes may end within a pid.
pub(crate) fn parse_pids(list: &[u8], cut_at: u64) -> impl Iterator<Item = u32> {
    let complete = match list.iter().rposition(|byte| *byte == b' ') {
        Some(end) if list.len() as u64 >= cut_at => &list[..end],
        _ => list,
    };
    let pids = complete.split(|byte| *byte == b' ');
    pids.filter_map(|pid| str::from_utf8(pid).ok()?.parse().ok())
}

/// Returns the process and its descendants, the process first: at most 10,000. On a kernel that
/// does not list [children], returns the process only.
///
/// # Errors
///
/// If file descriptors or memory are exhausted.
pub fn process_tree(pid: u32) -> io::Result<Vec<u32>> {
    let mut tree = vec![pid];
    let mut next = 0;
    while let Some(parent) = tree.get(next)
        && tree.len() < MAX_TREE_PROCESSES
    {
        // A process that has exited has no children.
        tree.extend(unless_exhausted(children(*parent))?.unwrap_or_default());
        next += 1;
    }
    tree.truncate(MAX_TREE_PROCESSES);
    Ok(tree)
}

/// Returns a field of `/proc/<pid>/status`, `proc_pid_status(5)`. Returns `None` if it cannot be
/// read. [`Stat`] has the state, the parent and the session as values.
///
/// # Errors
///
/// If file descriptors or memory are exhausted.
pub fn status_field(pid: u32, name: &str) -> io::Result<Option<String>> {
    let status = unless_exhausted(read(pid, "status"))?.unwrap_or_default();
    Ok(field_of(&String::from_utf8_lossy(&status), name).map(str::to_owned))
}

/// Returns a field of the text of a `status` file. The kernel escapes a newline in the name of the
/// process, the first field.
pub(crate) fn field_of<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(str::trim)
}

/// Reads the beginning of a file of the process.
fn read(pid: u32, file: &str) -> io::Result<Vec<u8>> {
    read_bounded(Path::new(&format!("/proc/{pid}/{file}")))
}

/// Reads the beginning of a file of the calling process. Replaces what is not UTF-8: other users can
/// choose the names of mount points.
pub(crate) fn read_own(file: &str) -> io::Result<String> {
    let contents = read_bounded(&Path::new("/proc/self").join(file))?;
    Ok(String::from_utf8_lossy(&contents).into_owned())
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Most files need one read, and one at the end.
    let mut contents = Vec::with_capacity(4096);
    File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut contents)?;
    Ok(contents)
}

/// Returns true if the error means that the process does not exist.
pub(crate) fn is_process_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::SRCH)
    )
}

/// Returns an error only if resources are exhausted, and `None` for any other error.
fn unless_exhausted<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_resource_exhaustion(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// Waits until the condition holds, far longer than it takes on a busy machine.
    pub(super) fn eventually(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_huge_file_is_read_in_part() {
        // This file is larger than any memory, as an `environ` set with `prctl(2)` can be.
        if let Err(error) = File::open("/proc/self/pagemap") {
            eprintln!("SKIPPED: cannot open /proc/self/pagemap: {error}");
            return;
        }
        let read = read(process::id(), "pagemap").unwrap();
        assert_eq!(read.len() as u64, MAX_FILE_BYTES);
    }

    /// Starts the command and returns its arguments as `/proc` shows them.
    fn arguments_of(command: &mut Command) -> Vec<OsString> {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        // `spawn` may return before the kernel has set the arguments.
        eventually(|| !Stat::of(child.id()).unwrap().unwrap().is_in_execve());
        let found = arguments(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        found.unwrap()
    }

    #[test]
    fn arguments_need_not_be_utf_8_and_can_be_empty() {
        let odd = OsStr::from_bytes(b"\xff");
        let found = arguments_of(Command::new("cat").arg0(odd));
        assert_eq!(found, [odd]);
        let args = ["-c", "read line", "", "box", ""];
        let found = arguments_of(Command::new("sh").args(args));
        assert_eq!(found, [&["sh"], &args[..]].concat());
    }

    #[test]
    fn a_process_tree_has_the_process_its_children_and_grandchildren() {
        if !kernel_lists_children() {
            eprintln!("SKIPPED: the kernel does not list children");
            return;
        }
        let mut child = shell("(echo; read line; :) & read line; wait");
        let grandchild_runs = child.stdout.take().unwrap().read_exact(&mut [0]);
        grandchild_runs.unwrap();
        let mut tree = process_tree(child.id()).unwrap();
        assert_eq!(tree.remove(0), child.id());
        assert_eq!(tree, children(child.id()).unwrap());
        assert_eq!(tree.len(), 1);
        assert!(process_tree(process::id()).unwrap().contains(&tree[0]));
        assert!(is_child(child.id()) && !is_child(tree[0]));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(children(child.id()).is_err());
        assert_eq!(process_tree(child.id()).unwrap(), [child.id()]);
    }

    #[test]
    fn a_list_that_is_cut_off_does_not_contain_a_part_of_a_pid() {
        let parse = |list: &[u8], cut_at| parse_pids(list, cut_at).collect::<Vec<_>>();
        assert_eq!(parse(b"12 345 ", 100), [12, 345]);
        assert_eq!(parse(b"12 345", 100), [12, 345]);
        assert_eq!(parse(b"12 34", 5), [12]);
        assert_eq!(parse(b"", 5), Vec::<u32>::new());
    }

    #[test]
    fn a_status_field_is_found_by_its_whole_name() {
        let status = "Name:\tPid:\nNSpid:\t1\nPid:\t12\nSigIgn:\t0000000000001001\n";
        assert_eq!(field_of(status, "Pid"), Some("12"));
        assert_eq!(field_of(status, "SigIgn"), Some("0000000000001001"));
        assert_eq!(field_of(status, "Pi"), None);
        let this = process::id();
        let pid = status_field(this, "Pid").unwrap();
        assert_eq!(pid, Some(this.to_string()));
        assert_eq!(status_field(u32::MAX, "Pid").unwrap(), None);
    }
}
