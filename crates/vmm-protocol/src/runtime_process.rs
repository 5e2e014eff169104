use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process;

use serde::{Deserialize, Serialize};

use crate::ProcessIdentity;
use crate::identity::{has_exited, is_gone, open};

/// The process of the VMM runtime that starts a shim.
///
/// An attached shim watches it beside the pipe of its watchdog: a child that the runtime's process
/// has forked without an exec inherits the pipe, and would keep the box alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeProcess {
    pid: u32,
    #[serde(flatten)]
    identity: ProcessIdentity,
    /// The inode number of the pid namespace; `None` on a kernel without namespaces.
    pid_namespace: Option<u64>,
}

/// The runtime's process has exited.
#[derive(Debug, PartialEq, Eq)]
pub struct RuntimeExited;

impl RuntimeProcess {
    /// Describes the calling process.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read, or no descriptor is left.
    pub fn this() -> io::Result<Self> {
        Ok(Self {
            pid: process::id(),
            identity: ProcessIdentity::of_this_process()?,
            pid_namespace: pid_namespace(),
        })
    }

    /// Opens a pidfd, which becomes readable when the process exits. Returns `None` where the
    /// process cannot be identified: from another pid namespace, behind the mount option `hidepid`
    /// of `/proc`, or without pidfds.
    ///
    /// # Errors
    ///
    /// [`RuntimeExited`] if it has exited.
    pub fn watch(&self) -> Result<Option<OwnedFd>, RuntimeExited> {
        if pid_namespace() != self.pid_namespace {
            return Ok(None);
        }
        let pidfd = match open(self.pid) {
            Ok(Some(pidfd)) => pidfd,
            Err(error) if is_gone(&error) => return Err(RuntimeExited),
            Ok(None) | Err(_) => return Ok(None),
        };
        // Read after the open: a process that still has its pid had it then.
        match ProcessIdentity::of(self.pid) {
            Ok(Some(found)) if found.is_same(&self.identity) => Ok(Some(pidfd)),
            Ok(Some(_)) => Err(RuntimeExited),
            Ok(None) if has_exited(&pidfd) => Err(RuntimeExited),
            Ok(None) | Err(_) => Ok(None),
        }
    }
}

fn pid_namespace() -> Option<u64> {
    let namespace = fs::metadata("/proc/self/ns/pid").ok()?;
    Some(namespace.ino())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_running_process_can_be_watched_until_it_exits() {
        let this = RuntimeProcess::this().unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let other = RuntimeProcess {
            pid: child.id(),
            identity: ProcessIdentity::of(child.id()).unwrap().unwrap(),
            ..this.clone()
        };
        let watched = other.watch();
        child.kill().unwrap();
        child.wait().unwrap();
        let has_pidfds = open(process::id()).unwrap().is_some();
        assert_eq!(matches!(watched, Ok(Some(_))), has_pidfds);
        assert_eq!(matches!(this.watch(), Ok(Some(_))), has_pidfds);
        assert_eq!(matches!(other.watch(), Err(RuntimeExited)), has_pidfds);
    }

    #[test]
    fn a_process_that_has_the_pid_now_is_not_taken_for_the_runtime() {
        let mut earlier = RuntimeProcess::this().unwrap();
        earlier.identity.start_time += 1;
        earlier.identity.pidfd_inode = earlier.identity.pidfd_inode.map(|inode| inode + 1);
        assert!(!matches!(earlier.watch(), Ok(Some(_))));
    }

    #[test]
    fn a_process_of_another_pid_namespace_is_not_watched() {
        let mut elsewhere = RuntimeProcess::this().unwrap();
        elsewhere.pid_namespace = elsewhere.pid_namespace.map(|inode| inode + 1).or(Some(1));
        assert!(matches!(elsewhere.watch(), Ok(None)));
    }
}
