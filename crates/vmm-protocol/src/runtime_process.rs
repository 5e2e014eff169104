use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::procfs::is_process_gone;
use crate::{PidLookup, PidRecord, ProcessIdentity, pidfd};

/// The process of the VMM runtime that starts a shim.
///
/// An attached shim watches this process in addition to its watchdog pipe. A child that the runtime
/// has forked without an exec inherits the pipe, and would keep the box alive after the runtime has
/// exited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeProcess {
    pid: u32,
    #[serde(flatten)]
    identity: ProcessIdentity,
    /// The inode number of the pid namespace; `None` on a kernel without namespaces.
    pid_namespace: Option<u64>,
}

/// The error that the process of the runtime has exited.
#[derive(Debug, PartialEq, Eq)]
pub struct RuntimeExited;

impl RuntimeProcess {
    /// Describes the calling process. The first successful call reads `/proc`; later ones return its
    /// result.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or no file descriptor is available.
    pub fn this() -> io::Result<Self> {
        /// The process that made the first call. A forked child inherits the value.
        static FIRST_CALLER: OnceLock<RuntimeProcess> = OnceLock::new();
        let (pid, pid_namespace) = (process::id(), pid_namespace());
        if let Some(cached) = FIRST_CALLER.get()
            && (cached.pid, cached.pid_namespace) == (pid, pid_namespace)
        {
            return Ok(cached.clone());
        }
        let this = Self {
            pid,
            identity: ProcessIdentity::of_this_process()?,
            pid_namespace,
        };
        let _ = FIRST_CALLER.set(this.clone());
        Ok(this)
    }

    /// Opens a pidfd, which becomes readable when the process exits.
    ///
    /// Returns `None` if the process cannot be identified: from another pid namespace, if `/proc`
    /// is mounted with `hidepid`, or without pidfds.
    ///
    /// # Errors
    ///
    /// [`RuntimeExited`] if the process has exited.
    pub fn watch(&self) -> Result<Option<OwnedFd>, RuntimeExited> {
        if pid_namespace() != self.pid_namespace {
            return Ok(None);
        }
        let pidfd = match pidfd::open(self.pid) {
            Ok(Some(pidfd)) => pidfd,
            Err(error) if is_process_gone(&error) => return Err(RuntimeExited),
            Ok(None) | Err(_) => return Ok(None),
        };
        let record = PidRecord {
            pid: self.pid,
            identity: Some(self.identity.clone()),
        };
        // After the open: a process that has the pid now also had it when the pidfd was opened.
        match record.lookup() {
            Ok(PidLookup::Alive(_)) => Ok(Some(pidfd)),
            Ok(PidLookup::Reused) => Err(RuntimeExited),
            Ok(PidLookup::NotFound) if pidfd::has_exited(&pidfd) => Err(RuntimeExited),
            Ok(PidLookup::NotFound | PidLookup::Unverified(_)) | Err(_) => Ok(None),
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
        let watch = other.watch();
        child.kill().unwrap();
        child.wait().unwrap();
        let has_pidfds = pidfd::open(process::id()).unwrap().is_some();
        assert_eq!(matches!(watch, Ok(Some(_))), has_pidfds);
        assert_eq!(matches!(this.watch(), Ok(Some(_))), has_pidfds);
        assert_eq!(matches!(other.watch(), Err(RuntimeExited)), has_pidfds);
    }

    #[test]
    fn a_process_that_reuses_the_pid_is_not_watched() {
        let mut earlier = RuntimeProcess::this().unwrap();
        earlier.identity.start_time += 1;
        earlier.identity.pidfd_inode = earlier.identity.pidfd_inode.map(|inode| inode + 1);
        assert!(!matches!(earlier.watch(), Ok(Some(_))));
    }

    #[test]
    fn a_process_in_another_pid_namespace_is_not_watched() {
        let mut foreign = RuntimeProcess::this().unwrap();
        foreign.pid_namespace = foreign.pid_namespace.map(|inode| inode + 1).or(Some(1));
        assert!(matches!(foreign.watch(), Ok(None)));
    }
}
