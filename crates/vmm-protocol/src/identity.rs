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

/// What tells a process from every other that had, has or will have its pid.
///
/// The pid alone does not: the kernel gives it away again. Start time and boot id do, up to the
/// 10 ms in which a pid would have to be recycled; the inode number of a pidfd is unique for the
/// life of the boot, where the kernel has one (Linux 6.9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// In clock ticks since boot: field 22 of `/proc/<pid>/stat`, `proc_pid_stat(5)`.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    #[serde(deserialize_with = "bounds::text")]
    pub boot_id: String,
    /// Of its pidfd; `None` before Linux 6.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfd_inode: Option<u64>,
}

impl ProcessIdentity {
    /// Of the calling process.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        Self::of(process::id())?
            .ok_or_else(|| io::Error::other("/proc does not show the calling process"))
    }

    /// Of whoever has this pid now; `None` if nobody does, or what does is already a zombie.
    ///
    /// All parts are of the same process: a pidfd that is opened first still refers to it at the end.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read, or no descriptor is left.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let pidfd = match open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let line = match fs::read(format!("/proc/{pid}/stat")) {
            Ok(line) => line,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((state, start_time)) = parse(&line) else {
            let message = format!("/proc/{pid}/stat has an unknown form");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        };
        let is_gone = match &pidfd {
            // The state is that of the main thread, which others may outlive.
            Some(pidfd) => has_exited(pidfd),
            None => matches!(state, b'Z' | b'X'),
        };
        if is_gone {
            return Ok(None);
        }
        Ok(Some(Self {
            start_time,
            boot_id: boot_id()?,
            pidfd_inode: pidfd.and_then(inode),
        }))
    }

    /// Whether both are the same process, given that their pids are equal.
    pub fn is_same(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id
            && match (self.pidfd_inode, other.pidfd_inode) {
                (Some(one), Some(two)) => one == two,
                _ => self.start_time == other.start_time,
            }
    }
}

/// `None` on a kernel without pidfds, or where they are forbidden.
pub(crate) fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = pid.try_into().ok().and_then(Pid::from_raw) else {
        return Err(nix::errno::Errno::ESRCH.into());
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // A thread's, pidfd_open(2).
        Err(rustix::io::Errno::INVAL) => Err(nix::errno::Errno::ESRCH.into()),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A pidfd is readable once its process has exited, and stays so when it is reaped.
pub(crate) fn has_exited(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn inode(pidfd: OwnedFd) -> Option<u64> {
    /// Before Linux 6.9 all pidfds share one inode, of another file system.
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

/// State (field 3) and start time (22). The name in field 2 may hold anything, so counting starts
/// behind its last parenthesis.
fn parse(line: &[u8]) -> Option<(u8, u64)> {
    let end_of_name = line.iter().rposition(|byte| *byte == b')')?;
    let rest = str::from_utf8(line.get(end_of_name + 2..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

pub(crate) fn is_gone(error: &io::Error) -> bool {
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
    fn a_process_is_itself_and_not_another() {
        let this = ProcessIdentity::of_this_process().unwrap();
        assert!(this.is_same(&ProcessIdentity::of(process::id()).unwrap().unwrap()));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let other = ProcessIdentity::of(child.id()).unwrap().unwrap();
        child.kill().unwrap();
        assert!(!this.is_same(&other));
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_is_nobody_any_more() {
        let mut child = Command::new("true").spawn().unwrap();
        while ProcessIdentity::of(child.id()).unwrap().is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(ProcessIdentity::of(child.id()).unwrap(), None);
    }

    #[test]
    fn numbers_that_are_no_pids_are_nobody() {
        assert_eq!(ProcessIdentity::of(0).unwrap(), None);
        assert_eq!(ProcessIdentity::of(u32::MAX).unwrap(), None);
    }

    #[test]
    fn a_threads_number_is_nobody() {
        let (told, number) = std::sync::mpsc::channel();
        let (end, until) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            told.send(nix::unistd::gettid()).unwrap();
            until.recv().unwrap_err();
        });
        let number = number.recv().unwrap().as_raw().cast_unsigned();
        assert_eq!(ProcessIdentity::of(number).unwrap(), None);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_process_outlives_its_main_thread() {
        let script = "import ctypes, os, threading, time
threading.Thread(target=lambda: time.sleep(1000)).start()
exit = {'x86_64': 60, 'aarch64': 93}[os.uname().machine]
ctypes.CDLL(None).syscall(exit, 0)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .spawn()
            .unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while parse(&fs::read(&stat).unwrap()).unwrap().0 != b'Z' {
            std::thread::yield_now();
        }
        let identity = ProcessIdentity::of(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Without pidfds there is only the state of its main thread.
        assert_eq!(identity.is_some(), open(process::id()).unwrap().is_some());
    }

    #[test]
    fn the_inode_decides_where_both_have_one() {
        let one = ProcessIdentity {
            start_time: 1,
            boot_id: "b".into(),
            pidfd_inode: Some(7),
        };
        let same_tick = ProcessIdentity {
            pidfd_inode: Some(8),
            ..one.clone()
        };
        let older_record = ProcessIdentity {
            pidfd_inode: None,
            ..one.clone()
        };
        let other_boot = ProcessIdentity {
            boot_id: "c".into(),
            ..one.clone()
        };
        assert!(!one.is_same(&same_tick));
        assert!(one.is_same(&older_record));
        assert!(!one.is_same(&other_boot));
    }
}
