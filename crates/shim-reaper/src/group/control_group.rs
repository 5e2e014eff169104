use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::PollFlags;

use super::{End, GroupError, POLL_INTERVAL};
use crate::{Signal, sys};

/// How long to wait before the next SIGKILL, for processes that are moved into the group.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The number of pidfds open at once.
const MAX_OPEN_PIDFDS: usize = 64;

/// The control group in which a shim was created, with all groups below it: `cgroups(7)`.
#[derive(Debug)]
pub(super) struct ControlGroup<'a> {
    dir: BorrowedFd<'a>,
    shim_pid: u32,
}

impl<'a> ControlGroup<'a> {
    pub(super) fn new(dir: &'a OwnedFd, shim_pid: u32) -> Self {
        let dir = dir.as_fd();
        Self { dir, shim_pid }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), GroupError> {
        if signal == Signal::SIGKILL && self.kill_at_once().is_ok() {
            return Ok(());
        }
        match self.signal_members(signal)? {
            Signalled { count: 0, denied } => {
                Err(denied.unwrap_or(GroupError::Empty { pid: self.shim_pid }))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn kill(&self, deadline: Instant) -> Result<(), GroupError> {
        loop {
            if self.kill_at_once().is_err() {
                // Frozen processes do not fork.
                let frozen = self.freeze();
                let signalled = self.signal_members(Signal::SIGKILL);
                drop(frozen);
                if let Some(denied) = signalled?.denied {
                    return Err(denied);
                }
            }
            let now = Instant::now();
            if self.await_empty(deadline.min(now + RETRY_INTERVAL))? {
                return Ok(());
            }
            if now >= deadline {
                let members = self.members().map_err(|source| self.error(source))?;
                let pid = members.first().copied().unwrap_or_default();
                return Err(GroupError::StillRunning { pid });
            }
        }
    }

    pub(super) fn await_empty(&self, deadline: Instant) -> Result<bool, GroupError> {
        let is_empty = match File::open(self.path().join("cgroup.events")) {
            Ok(events) => await_unpopulated(&events, deadline),
            Err(error) if is_missing(&error) => self.await_no_members(deadline),
            Err(error) => Err(error),
        };
        is_empty.map_err(|source| self.error(source))
    }

    pub(super) fn end(&self, deadline: Instant, how: End) -> Result<bool, GroupError> {
        match how {
            End::Await => self.await_empty(deadline),
            End::Kill => self.kill(deadline).map(|()| true),
        }
    }

    /// Kills all members at once, forks in flight included: `cgroup.kill`, Linux 5.14.
    fn kill_at_once(&self) -> io::Result<()> {
        write(&self.path().join("cgroup.kill"), "1")
    }

    /// Freezes the group, if it can be frozen, until the result is dropped.
    fn freeze(&self) -> Option<Frozen> {
        // Version 2, Linux 5.2, and version 1.
        let files = [
            ("cgroup.freeze", "1", "0"),
            ("freezer.state", "FROZEN", "THAWED"),
        ];
        files.into_iter().find_map(|(file, freeze, thaw)| {
            let file = self.path().join(file);
            write(&file, freeze).ok()?;
            Some(Frozen { file, thaw })
        })
    }

    /// Waits like [`await_empty`](Self::await_empty), in a group of version 1.
    fn await_no_members(&self, deadline: Instant) -> io::Result<bool> {
        while !self.members()?.is_empty() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(true)
    }

    /// Sends a signal to each member.
    fn signal_members(&self, signal: Signal) -> Result<Signalled, GroupError> {
        let mut signalled = Signalled::default();
        let groups = self.groups().map_err(|source| self.error(source))?;
        for group in groups {
            let members = members_of(&group).map_err(|source| self.error(source))?;
            for pids in members.chunks(MAX_OPEN_PIDFDS) {
                let opened = pids.iter().map(|pid| (*pid, sys::pidfd_open(*pid)));
                let opened: Vec<_> = opened.collect();
                // Read again, because the pidfds now pin the processes.
                let members = members_of(&group).map_err(|source| self.error(source))?;
                let members: HashSet<u32> = members.into_iter().collect();
                for (pid, pidfd) in opened {
                    if members.contains(&pid) {
                        signalled.add(pid, send(pid, pidfd, signal));
                    }
                }
            }
        }
        Ok(signalled)
    }

    /// Returns the members of the group and of all groups below it.
    fn members(&self) -> io::Result<Vec<u32>> {
        let mut members = Vec::new();
        for group in self.groups()? {
            members.extend(members_of(&group)?);
        }
        Ok(members)
    }

    /// Returns the directories of the group and of all groups below it.
    fn groups(&self) -> io::Result<Vec<PathBuf>> {
        let mut groups = vec![self.path()];
        let mut next = 0;
        while let Some(group) = groups.get(next) {
            next += 1;
            let entries = match fs::read_dir(group) {
                Ok(entries) => entries,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(error),
            };
            let entries = entries.flatten();
            let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let inner: Vec<_> = inner.map(|entry| entry.path()).collect();
            groups.extend(inner);
        }
        Ok(groups)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }

    fn error(&self, source: io::Error) -> GroupError {
        let pid = self.shim_pid;
        GroupError::Io { pid, source }
    }
}

/// A frozen control group, which is thawed when this is dropped.
struct Frozen {
    file: PathBuf,
    thaw: &'static str,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = write(&self.file, self.thaw) {
            tracing::warn!(%error, "cannot thaw a control group");
        }
    }
}

/// The result of a signal to each member.
#[derive(Default)]
struct Signalled {
    count: usize,
    denied: Option<GroupError>,
}

impl Signalled {
    fn add(&mut self, pid: u32, sent: io::Result<()>) {
        match sent {
            Ok(()) => self.count += 1,
            Err(source) if source.raw_os_error() == Some(libc::EPERM) => {
                self.denied = Some(GroupError::Denied { pid, source });
            }
            // It has just exited.
            Err(_) => {}
        }
    }
}

fn send(pid: u32, pidfd: io::Result<OwnedFd>, signal: Signal) -> io::Result<()> {
    match pidfd {
        Ok(pidfd) => sys::pidfd_send_signal(pidfd.as_fd(), Some(signal)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(error),
        // 0 stands for a process in another PID namespace.
        Err(error) if pid == 0 => Err(error),
        // Without a pidfd, only the list that was read just now shows that the pid is a member.
        Err(_) => sys::kill(pid, signal),
    }
}

/// Waits until the file `cgroup.events` reports that the group is not populated: the kernel raises
/// `POLLPRI` when the file changes.
fn await_unpopulated(events: &File, deadline: Instant) -> io::Result<bool> {
    let mut text = [0; 256];
    loop {
        let read = match events.read_at(&mut text, 0) {
            Ok(read) => read,
            // The group has been removed.
            Err(error) if is_missing(&error) => return Ok(true),
            Err(error) => return Err(error),
        };
        let mut lines = text
            .get(..read)
            .unwrap_or_default()
            .split(|byte| *byte == b'\n');
        if lines.any(|line| line == b"populated 0") {
            return Ok(true);
        }
        if !sys::await_event(events.as_fd(), PollFlags::POLLPRI, Some(deadline)) {
            return Ok(false);
        }
    }
}

/// Returns the members of one group.
fn members_of(group: &Path) -> io::Result<Vec<u32>> {
    match fs::read_to_string(group.join("cgroup.procs")) {
        Ok(list) => Ok(list.lines().flat_map(str::parse).collect()),
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Writes to an existing file.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.write_all(value.as_bytes())
}

/// Returns whether a file or its group does not exist.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
