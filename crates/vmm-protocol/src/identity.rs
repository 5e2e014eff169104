use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{FsType, fstatfs};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::bounds;

/// The identity of a process: it distinguishes the process from all others that have the same pid
/// at another time.
///
/// A pid alone is not enough, because the kernel reuses it. Start time and boot id are enough
/// unless the pid is reused within the same clock tick (10 ms). From Linux 6.9 on, the inode number
/// of a pidfd is unique until the next reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The start time in clock ticks since boot: field 22 of `/proc/<pid>/stat`,
    /// `proc_pid_stat(5)`.
    pub start_time: u64,
    /// The content of `/proc/sys/kernel/random/boot_id`.
    #[serde(deserialize_with = "bounds::deserialize_text")]
    pub boot_id: String,
    /// The inode number of the pidfd; `None` before Linux 6.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfd_inode: Option<u64>,
}

impl ProcessIdentity {
    /// Returns the identity of the calling process.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or no file descriptor is available.
    pub fn of_this_process() -> io::Result<Self> {
        Self::of(process::id())?
            .ok_or_else(|| io::Error::other("/proc does not show the calling process"))
    }

    /// Returns the identity of the process that currently has this pid. Returns `None` if no
    /// process has it, or if the process is a zombie.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or no file descriptor is available.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        // The pidfd is opened first and checked last, so all parts describe the same process.
        let pidfd = match open_pidfd(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if is_process_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = match fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            Err(error) if is_process_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((state, start_time)) = parse_stat(&stat) else {
            let message = format!("cannot parse /proc/{pid}/stat");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        };
        let has_exited = match &pidfd {
            // The state in `stat` is that of the main thread, which other threads may outlive.
            Some(pidfd) => has_exited(pidfd),
            None => matches!(state, b'Z' | b'X'),
        };
        if has_exited {
            return Ok(None);
        }
        Ok(Some(Self {
            start_time,
            boot_id: boot_id()?,
            pidfd_inode: pidfd.and_then(inode),
        }))
    }

    /// Returns true if both identities, read for the same pid, belong to the same process.
    pub fn is_same(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id
            && match (self.pidfd_inode, other.pidfd_inode) {
                (Some(one), Some(two)) => one == two,
                _ => self.start_time == other.start_time,
            }
    }
}

/// Opens a pidfd. Returns `None` if the kernel has no pidfds, or a sandbox forbids them.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = pid.try_into().ok().and_then(Pid::from_raw) else {
        return Err(nix::errno::Errno::ESRCH.into());
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // It is the id of a thread, pidfd_open(2).
        Err(rustix::io::Errno::INVAL) => Err(nix::errno::Errno::ESRCH.into()),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns true if the process has exited. A pidfd becomes readable at the exit of its process, and
/// stays readable after the process is reaped.
pub(crate) fn has_exited(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn inode(pidfd: OwnedFd) -> Option<u64> {
    /// Before Linux 6.9, all pidfds share one inode of another file system.
    const PIDFS_MAGIC: FsType = FsType(0x5049_4446);
    if fstatfs(pidfd.as_fd()).ok()?.filesystem_type() != PIDFS_MAGIC {
        return None;
    }
    File::from(pidfd).metadata().ok().map(|file| file.ino())
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Returns the state (field 3) and the start time (field 22) of a `/proc/<pid>/stat` file.
///
/// The process name in field 2 can contain spaces and parentheses, so parsing starts after the last
/// closing parenthesis.
fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = str::from_utf8(stat.get(name_end + 2..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Returns true if the error means that the process does not exist.
pub(crate) fn is_process_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOENT | nix::libc::ESRCH)
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_has_its_own_identity() {
        let this = ProcessIdentity::of_this_process().unwrap();
        assert!(this.is_same(&ProcessIdentity::of(process::id()).unwrap().unwrap()));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let other = ProcessIdentity::of(child.id()).unwrap().unwrap();
        child.kill().unwrap();
        assert!(!this.is_same(&other));
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_has_no_identity() {
        let mut child = Command::new("true").spawn().unwrap();
        while ProcessIdentity::of(child.id()).unwrap().is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(ProcessIdentity::of(child.id()).unwrap(), None);
    }

    #[test]
    fn an_invalid_pid_has_no_identity() {
        assert_eq!(ProcessIdentity::of(0).unwrap(), None);
        assert_eq!(ProcessIdentity::of(u32::MAX).unwrap(), None);
    }

    #[test]
    fn a_thread_id_has_no_identity() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (keep_alive, hang_up) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(nix::unistd::gettid()).unwrap();
            hang_up.recv().unwrap_err();
        });
        let thread_id = receiver.recv().unwrap().as_raw().cast_unsigned();
        assert_eq!(ProcessIdentity::of(thread_id).unwrap(), None);
        drop(keep_alive);
        thread.join().unwrap();
    }

    #[test]
    fn a_process_without_its_main_thread_has_an_identity() {
        let script = "import ctypes, os, threading, time
threading.Thread(target=lambda: time.sleep(1000)).start()
exit = {'x86_64': 60, 'aarch64': 93}[os.uname().machine]
ctypes.CDLL(None).syscall(exit, 0)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .spawn()
            .unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while parse_stat(&fs::read(&stat).unwrap()).unwrap().0 != b'Z' {
            std::thread::yield_now();
        }
        let identity = ProcessIdentity::of(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Without pidfds, only the state of the main thread is known.
        let has_pidfds = open_pidfd(process::id()).unwrap().is_some();
        assert_eq!(identity.is_some(), has_pidfds);
    }

    #[test]
    fn the_pidfd_inode_is_decisive_if_both_identities_have_one() {
        let one = ProcessIdentity {
            start_time: 1,
            boot_id: "b".into(),
            pidfd_inode: Some(7),
        };
        let same_tick = ProcessIdentity {
            pidfd_inode: Some(8),
            ..one.clone()
        };
        let without_inode = ProcessIdentity {
            pidfd_inode: None,
            ..one.clone()
        };
        let other_boot = ProcessIdentity {
            boot_id: "c".into(),
            ..one.clone()
        };
        assert!(!one.is_same(&same_tick));
        assert!(one.is_same(&without_inode));
        assert!(!one.is_same(&other_boot));
    }
}
