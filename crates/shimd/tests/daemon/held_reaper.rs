use std::fs;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::fixture::skipped;
use crate::process::as_pid;

/// The thread on which a daemon's reaper runs, which stands still until this is dropped.
pub(crate) struct HeldReaper(Pid);

impl HeldReaper {
    /// `None` where one process may not hold another.
    pub(crate) fn of(daemon: u32) -> Option<Self> {
        let thread = thread_named("vmm-runtime", daemon);
        match ptrace::seize(thread, ptrace::Options::empty()) {
            Err(Errno::EPERM | Errno::ENOSYS) => {
                skipped("this process may not trace another");
                return None;
            }
            outcome => outcome.unwrap(),
        }
        let held = Self(thread);
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Some(held)
    }
}

impl Drop for HeldReaper {
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
