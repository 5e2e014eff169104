use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::libc;

use super::Member;

/// The fields of `/proc/<pid>/stat` that identify a process and show how a zombie ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcStat {
    /// Start time in clock ticks since boot. Pid and start time identify a process without a pidfd.
    pub(crate) start_time: u64,
    pub(crate) exited: bool,
    /// The wait status; known only for a zombie that this process may inspect.
    pub(crate) status: Option<ExitStatus>,
}

impl ProcStat {
    /// Reads `/proc/<pid>/stat`. Returns `None` if no process has this pid.
    pub(crate) fn read(pid: u32) -> io::Result<Option<Self>> {
        let Some(stat) = read_stat(pid)? else {
            return Ok(None);
        };
        // A process whose first thread has exited looks like a zombie, but for its other threads.
        let exited = stat.exited && stat.threads <= 1;
        // proc_pid_stat(5) shows 0 to a reader without permission, which is also the status of success.
        let status = (exited && may_inspect(pid)).then(|| ExitStatus::from_raw(stat.exit_code));
        Ok(Some(Self {
            start_time: stat.start_time,
            exited,
            status,
        }))
    }
}

/// Returns the processes in the process groups, without zombies.
pub(crate) fn group_members(pgids: &BTreeSet<u32>) -> io::Result<Vec<Member>> {
    let mut members = Vec::new();
    for pid in numbers_in("/proc")? {
        let stat = read_stat(pid)?;
        // A thread group whose first thread has exited looks like a zombie, but for its threads.
        let is_running = |stat: &Stat| !stat.exited || stat.threads > 1;
        let is_member = |stat: &Stat| pgids.contains(&stat.group) && is_running(stat);
        members.extend(stat.filter(is_member).map(|stat| Member {
            pid,
            group: stat.group,
            start_time: stat.start_time,
        }));
    }
    Ok(members)
}

/// The fields that this crate uses: `proc_pid_stat(5)`.
#[derive(Debug, PartialEq)]
pub(crate) struct Stat {
    /// Whether the first thread has exited.
    pub(crate) exited: bool,
    group: u32,
    threads: u64,
    pub(crate) start_time: u64,
    exit_code: i32,
}

/// Reads `/proc/<pid>/stat`. Returns `None` if no process has this pid.
fn read_stat(pid: u32) -> io::Result<Option<Stat>> {
    let line = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(line) => line,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = parse(&line).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("cannot parse /proc/{pid}/stat"),
        )
    })?;
    Ok(Some(stat))
}

/// Returns state (field 3), process group (5), number of threads (20), start time (22) and exit code
/// (52). The name in field 2 may contain any character, so the fields are counted from its last
/// parenthesis on.
pub(crate) fn parse(line: &[u8]) -> Option<Stat> {
    let end_of_name = line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(line.get(end_of_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    // The group of a process that is being reaped is shown as -1.
    let group = fields.nth(1)?.parse().unwrap_or_default();
    let threads = fields.nth(14)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    let exit_code = fields.nth(29)?.parse().ok()?;
    Some(Stat {
        exited: matches!(state, b'Z' | b'X' | b'x'),
        group,
        threads,
        start_time,
        exit_code,
    })
}

/// Returns the pid of a process by its pidfd, on any kernel that has pidfds. Fails with ESRCH if it
/// has been reaped, and with `InvalidInput` if the descriptor is not a pidfd of a process.
pub(crate) fn pid_of_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    parse_fdinfo(&fs::read_to_string(format!(
        "/proc/self/fdinfo/{}",
        pidfd.as_raw_fd()
    ))?)
}

pub(crate) fn parse_fdinfo(info: &str) -> io::Result<u32> {
    let field = |name| info.lines().find_map(|line| line.strip_prefix(name));
    let flags = field("flags:").and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    let is_thread = flags.is_some_and(|flags| flags & libc::PIDFD_THREAD as i32 != 0);
    let pid = field("Pid:").and_then(|pid| pid.trim().parse::<i32>().ok());
    match pid.filter(|_| !is_thread) {
        Some(pid @ 1..) => Ok(pid as u32),
        // -1 for a reaped process, 0 for one of another PID namespace.
        Some(_) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Returns whether this process may read the exit code in `stat`. Reading `exe` needs the same
/// permission (ptrace read); for a zombie that may be inspected it fails with ENOENT, because the
/// executable is already released.
fn may_inspect(pid: u32) -> bool {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENOENT),
    }
}

/// The children of this process.
#[derive(Debug)]
pub(crate) struct Children {
    /// The children of the main thread, to which the kernel reparents all orphans as long as it
    /// runs. All processes of the system if the main thread has exited, and on kernels without
    /// `CONFIG_PROC_CHILDREN`.
    pub(crate) forked_or_reparented: Vec<u32>,
    /// The children of the other threads.
    pub(crate) forked: Vec<u32>,
}

impl Children {
    pub(crate) fn read() -> io::Result<Self> {
        let pid = std::process::id();
        let mut forked = Vec::new();
        for task in numbers_in("/proc/self/task")? {
            if task != pid {
                // The thread may have exited.
                forked.extend(children_of(task)?.unwrap_or_default());
            }
        }
        // The main thread last: the kernel reparents to it the children of a thread that exits
        // during this loop.
        let of_main_thread = children_of(pid)?;
        let main_thread_runs = read_stat(pid)?.is_some_and(|stat| !stat.exited);
        Ok(match of_main_thread.filter(|_| main_thread_runs) {
            Some(forked_or_reparented) => Self {
                forked_or_reparented,
                forked,
            },
            None => Self {
                forked_or_reparented: numbers_in("/proc")?,
                forked: Vec::new(),
            },
        })
    }
}

/// Reads the list of a thread's children. Returns `None` if the file does not exist.
pub(crate) fn children_of(task: u32) -> io::Result<Option<Vec<u32>>> {
    match fs::read_to_string(format!("/proc/self/task/{task}/children")) {
        Ok(list) => Ok(Some(
            list.split_ascii_whitespace().flat_map(str::parse).collect(),
        )),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the numeric names in a directory.
fn numbers_in(directory: &str) -> io::Result<Vec<u32>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    let numbers = names.map(|name: io::Result<_>| Ok(name?.to_str().and_then(|n| n.parse().ok())));
    numbers.filter_map(io::Result::transpose).collect()
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    use nix::libc;

    use super::{Stat, parse, pid_of_pidfd};
    use crate::sys::{pidfd_open, pidfd_pid};

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"77 (a) R (b)) Z 1 2 3 0 -1 4227148 18 0 0 0 0 0 0 0 20 0 1 0 156715 0 0 \
            18446744073709551615 0 0 0 0 0 0 0 0 0 1 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 10752\n";
        let stat = Stat {
            exited: true,
            group: 2,
            threads: 1,
            start_time: 156_715,
            exit_code: 10_752,
        };
        assert_eq!(parse(line), Some(stat));
    }

    #[test]
    fn a_truncated_line_is_rejected() {
        assert_eq!(parse(b"77 (a) Z 1 2"), None);
        assert_eq!(parse(b"77 (a"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn procfs_and_the_kernel_agree_on_the_pid_of_a_pidfd() {
        let pids = |fd: BorrowedFd<'_>| {
            let by_procfs = pid_of_pidfd(fd);
            // Before Linux 6.13, and for other descriptors, only procfs has the answer.
            let by_kernel = pidfd_pid(fd).unwrap_or_else(|| pid_of_pidfd(fd));
            let view = |pid: io::Result<u32>| pid.map_err(|error| error.kind());
            assert_eq!(view(by_procfs), view(by_kernel));
            view(pid_of_pidfd(fd))
        };
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        assert_eq!(pids(pidfd.as_fd()), Ok(child.id()));
        child.wait().unwrap();
        let reaped = io::Error::from_raw_os_error(libc::ESRCH).kind();
        assert_eq!(pids(pidfd.as_fd()), Err(reaped));
        let file = File::open("/dev/null").unwrap();
        assert_eq!(pids(file.as_fd()), Err(io::ErrorKind::InvalidInput));
    }
}
