use std::fs;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::fixture::skip;
use crate::process::as_pid;

/// The thread of a daemon's reaper, stopped with `ptrace` until this is dropped.
pub(crate) struct PausedReaper(Pid);

impl PausedReaper {
    /// Stops the thread. Returns `None` if this process may not trace another one.
    pub(crate) fn pause(daemon: u32) -> Option<Self> {
        let thread = thread_named("vmm-runtime", daemon);
        match ptrace::seize(thread, ptrace::Options::empty()) {
            Err(Errno::EPERM | Errno::ENOSYS) => {
                skip("this process may not trace another");
                return None;
            }
            outcome => outcome.unwrap(),
        }
        let paused = Self(thread);
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Some(paused)
    }
}

impl Drop for PausedReaper {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

fn thread_named(name: &str, pid: u32) -> Pid {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let thread = threads.find_map(|thread| {
        let thread = thread.ok()?;
        let found = fs::read_to_string(thread.path().join("comm")).ok()?;
        let id = thread.file_name().to_str()?.parse().ok()?;
        (found.trim() == name).then_some(as_pid(id))
    });
    thread.unwrap_or_else(|| panic!("no thread is named {name}"))
}
