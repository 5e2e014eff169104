use std::fs;
use std::io;
use std::process;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::procfs::{Stat, is_process_gone};
use crate::{bounds, pidfd};

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
        let pidfd = match pidfd::open(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if is_process_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(stat) = Stat::read(pid)? else {
            return Ok(None);
        };
        let has_exited = match &pidfd {
            // The state in `stat` is that of the main thread, which other threads may outlive.
            Some(pidfd) => pidfd::has_exited(pidfd),
            None => stat.is_zombie(),
        };
        if has_exited {
            return Ok(None);
        }
        Ok(Some(Self {
            start_time: stat.start_time,
            boot_id: boot_id()?,
            pidfd_inode: pidfd.and_then(pidfd::inode),
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

/// Returns the id of this boot of the host, the content of `/proc/sys/kernel/random/boot_id`. Reads the
/// file once: its content is the same as long as the process lives.
pub fn boot_id() -> io::Result<String> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(boot_id) = BOOT_ID.get() {
        return Ok(boot_id.clone());
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()).clone())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::procfs;

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
        while !procfs::is_zombie(child.id()) {
            std::thread::yield_now();
        }
        let identity = ProcessIdentity::of(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Without pidfds, only the state of the main thread is known.
        let has_pidfds = pidfd::open(process::id()).unwrap().is_some();
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
