mod spawn;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{self, ExitStatus};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::get_child_subreaper;
use nix::sys::signal;
use nix::unistd::Pid;

use super::orphans::OrphanSearch;
use super::procfs;
use super::{
    ForkedChildren, Member, NoPidfd, Orphan, Orphans, ProcStat, ProcessTable, ReapRequests,
    Spawned, Target, Until, WaitResult, Watches,
};
use crate::Signal;
use crate::command::sealed::CommandRef;
use crate::sys::{self, ChildExit, WaitFor};
use crate::thread::spawn_thread;

/// The running kernel.
#[derive(Debug)]
pub(crate) struct Linux {
    /// Whether the embedder allows pidfds.
    pidfds: bool,
    /// Whether the kernel can poll pidfds.
    polls_pidfds: OnceLock<bool>,
    /// Why a pidfd could not be opened: the kernel has none, or a seccomp filter denies the call. A filter
    /// belongs to a thread, so that this does not hold for other threads.
    pidfd_failure: OnceLock<io::Error>,
    watches: Watches,
    /// `None` unless the embedder wants io_uring.
    reap_requests: Option<ReapRequests>,
    orphans: OrphanSearch,
}

impl Linux {
    pub(crate) fn new(pidfds: bool, io_uring: bool) -> Self {
        Self {
            pidfds,
            polls_pidfds: OnceLock::new(),
            pidfd_failure: OnceLock::new(),
            watches: Watches::default(),
            reap_requests: io_uring.then(ReapRequests::default),
            orphans: OrphanSearch::default(),
        }
    }

    pub(crate) fn watches(&self) -> &Watches {
        &self.watches
    }

    pub(crate) fn reap_requests(&self) -> Option<&ReapRequests> {
        self.reap_requests.as_ref()
    }

    /// Returns the epoll descriptor, which is readable when a watch has an event. Returns `None`
    /// without pidfds, and if the epoll cannot be created.
    pub(crate) fn readiness_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfds.then(|| self.watches.fd().ok()).flatten()
    }

    fn wait(&self, target: Target<'_, OwnedFd>, keep_zombie: bool) -> WaitResult {
        let requests = match &target {
            Target::Pidfd(_, pidfd) => self.reap_requests().map(|found| (found, pidfd.as_fd())),
            Target::Pid(_) => None,
        };
        let reaped = requests.and_then(|(found, pidfd)| found.status(pidfd, keep_zombie));
        if let Some(status) = reaped {
            return reaped_by_kernel(status);
        }
        let found = match target {
            Target::Pid(pid) => sys::waitid(WaitFor::Pid(pid), keep_zombie),
            Target::Pidfd(pid, pidfd) => {
                match sys::waitid(WaitFor::Pidfd(pidfd.as_fd()), keep_zombie) {
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        wait_by_guarded_pid(pid, pidfd, keep_zombie)
                    }
                    found => found,
                }
            }
        };
        match found {
            Ok(Some(exit)) => WaitResult::Exited(exit),
            Ok(None) => WaitResult::Running,
            Err(_) => requests
                .and_then(|(found, pidfd)| found.status_of_reaped(pidfd, keep_zombie))
                .map_or(WaitResult::NotWaitable, reaped_by_kernel),
        }
    }
}

fn reaped_by_kernel(status: ExitStatus) -> WaitResult {
    WaitResult::Exited(ChildExit {
        status,
        usage: None,
    })
}

/// Waits by pid after the pidfd has proved that the pid is not recycled. Linux 5.3 has pidfds but
/// cannot wait by them.
fn wait_by_guarded_pid(
    pid: u32,
    pidfd: &OwnedFd,
    keep_zombie: bool,
) -> io::Result<Option<ChildExit>> {
    if sys::pidfd_is_reaped(pidfd.as_fd()) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    sys::waitid(WaitFor::Pid(pid), keep_zombie)
}

impl ProcessTable for Linux {
    type Pidfd = OwnedFd;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }

    fn spawn_thread(&self, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        spawn_thread(run)
    }

    fn open(&self, pid: u32) -> Result<OwnedFd, NoPidfd> {
        if !self.pidfds {
            return Err(NoPidfd::Unsupported);
        }
        sys::pidfd_open(pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => NoPidfd::NoProcess,
            Some(libc::ENOSYS | libc::EPERM | libc::ENODEV) => {
                // Not logged here: the caller may hold a lock.
                let _ = self.pidfd_failure.set(error);
                NoPidfd::Unsupported
            }
            _ => NoPidfd::Exhausted(error),
        })
    }

    fn pidfd_failure(&self) -> Option<&io::Error> {
        self.pidfd_failure.get()
    }

    fn duplicate(&self, pidfd: &OwnedFd) -> io::Result<OwnedFd> {
        pidfd.try_clone()
    }

    fn accept(&self, pidfd: OwnedFd) -> Result<OwnedFd, NoPidfd> {
        let can_poll = || sys::pidfd_can_be_polled(pidfd.as_fd());
        if self.pidfds && *self.polls_pidfds.get_or_init(can_poll) {
            Ok(pidfd)
        } else if self.is_reaped(&pidfd) {
            Err(NoPidfd::NoProcess)
        } else {
            Err(NoPidfd::Unsupported)
        }
    }

    fn spawn(
        &self,
        command: CommandRef<'_>,
        process_group: Option<i32>,
        early_pidfd: bool,
    ) -> io::Result<Spawned<OwnedFd>> {
        match command {
            CommandRef::Native(command) => {
                if let Some(pgroup) = process_group {
                    command.process_group(pgroup);
                }
                self.spawn_native(command)
            }
            CommandRef::Std(command) => self.spawn_std(command, process_group, early_pidfd),
        }
    }

    fn discard(&self, pid: u32, pidfd: Option<OwnedFd>) {
        let killed = match &pidfd {
            Some(pidfd) => self.signal(pidfd, Signal::SIGKILL),
            // A foreign wait has reaped it, and the pid may be that of another process.
            None if matches!(self.peek(Target::Pid(pid)), WaitResult::NotWaitable) => return,
            None => self.signal_pid(pid, Signal::SIGKILL),
        };
        // Fails if a foreign wait has reaped it.
        if killed.is_ok() {
            self.reap_exiting(pid, pidfd);
        }
    }

    fn watch(&self, pidfd: &OwnedFd, token: u64) -> io::Result<()> {
        self.watches.add(pidfd.as_fd(), token)
    }

    fn watch_again(&self, pidfd: &OwnedFd, token: u64, until: Until) -> io::Result<()> {
        self.watches.add_again(pidfd.as_fd(), token, until)
    }

    fn unwatch(&self, pidfd: &OwnedFd) {
        self.watches.remove(pidfd.as_fd());
    }

    fn reap_on_exit(&self, pidfd: &OwnedFd, token: u64) {
        let requests = self.reap_requests.as_ref();
        if requests.is_some_and(|requests| requests.add(pidfd.as_fd(), token)) {
            self.watches.remove(pidfd.as_fd());
        }
    }

    fn release(&self, pidfd: OwnedFd) -> Option<OwnedFd> {
        match &self.reap_requests {
            Some(requests) => requests.release(pidfd),
            None => Some(pidfd),
        }
    }

    fn stop_reaping(&self) {
        if let Some(requests) = &self.reap_requests {
            requests.stop();
        }
    }

    fn ready(&self, tokens: &mut VecDeque<u64>) -> io::Result<usize> {
        self.watches.ready(tokens)
    }

    fn peek(&self, target: Target<'_, OwnedFd>) -> WaitResult {
        self.wait(target, true)
    }

    fn reap(&self, target: Target<'_, OwnedFd>) -> WaitResult {
        self.wait(target, false)
    }

    fn exit_status(&self, pidfd: &OwnedFd) -> Option<ExitStatus> {
        sys::pidfd_exit_status(pidfd.as_fd())
    }

    fn has_exited(&self, pidfd: &OwnedFd) -> bool {
        sys::pidfd_has_exited(pidfd.as_fd())
    }

    fn any_has_exited(&self, pidfds: &[&OwnedFd]) -> bool {
        sys::any_pidfd_has_exited(pidfds.iter().map(AsFd::as_fd))
    }

    fn await_exit(&self, pidfd: &OwnedFd, deadline: Instant) -> bool {
        sys::pidfd_await_exit(pidfd.as_fd(), Some(deadline))
    }

    fn is_reaped(&self, pidfd: &OwnedFd) -> bool {
        sys::pidfd_is_reaped(pidfd.as_fd())
    }

    fn signal(&self, pidfd: &OwnedFd, signal: Signal) -> io::Result<()> {
        sys::pidfd_send_signal(pidfd.as_fd(), Some(signal))
    }

    fn signal_pid(&self, pid: u32, signal: Signal) -> io::Result<()> {
        sys::kill(pid, signal)
    }

    fn signal_group(&self, leader: &OwnedFd, signal: Option<Signal>) -> io::Result<()> {
        sys::pidfd_signal_group(leader.as_fd(), signal)
    }

    fn signal_group_number(&self, pgid: u32, signal: Option<Signal>) -> io::Result<()> {
        sys::kill_group(pgid, signal)
    }

    fn group_members(&self, pgids: &BTreeSet<u32>) -> io::Result<Vec<Member>> {
        procfs::group_members(pgids)
    }

    fn stat(&self, pid: u32) -> io::Result<Option<ProcStat>> {
        ProcStat::read(pid)
    }

    fn adopts_orphans(&self) -> bool {
        process::id() == 1 || get_child_subreaper().unwrap_or(false)
    }

    fn dead_orphans(&self, among: Orphans<'_>, forked: &mut ForkedChildren) -> Vec<Orphan> {
        self.orphans.find_dead(among, forked)
    }

    fn reap_orphan(&self, orphan: Orphan) -> bool {
        let pidfd = self.open(orphan.pid);
        let target = match &pidfd {
            Ok(pidfd) => Target::Pidfd(orphan.pid, pidfd),
            Err(NoPidfd::Unsupported) => Target::Pid(orphan.pid),
            Err(NoPidfd::NoProcess | NoPidfd::Exhausted(_)) => return false,
        };
        // Read after the pidfd is open: an equal start time proves that the pidfd is the orphan's.
        let same = matches!(
            ProcStat::read(orphan.pid),
            Ok(Some(stat)) if stat.start_time == orphan.start_time
        );
        same && matches!(self.reap(target), WaitResult::Exited(_))
    }

    fn group_exists(&self, pgid: u32) -> bool {
        // While the group has members, the kernel gives its number to no new process.
        let recycled = !matches!(signal::kill(as_pid(pgid), None), Err(Errno::ESRCH));
        !recycled && !matches!(signal::killpg(as_pid(pgid), None), Err(Errno::ESRCH))
    }
}

fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(pid as i32)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::wake_event::WakeEvent;

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn one_exited_process_among_running_ones_is_noticed() {
        let kernel = Linux::new(true, false);
        let start = |program: &mut Command| {
            let child = program.spawn().unwrap();
            let pidfd = kernel.open(child.id()).unwrap();
            (child, pidfd)
        };
        let (mut running, running_fd) = start(Command::new("sleep").arg("1000"));
        let (mut exited, exited_fd) = start(&mut Command::new("true"));
        sys::pidfd_await_exit(exited_fd.as_fd(), None);
        let before = kernel.any_has_exited(&[&running_fd]);
        let found = kernel.any_has_exited(&[&running_fd, &exited_fd]);
        exited.wait().unwrap();
        let found_reaped = kernel.any_has_exited(&[&exited_fd, &running_fd]);
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(!before && found && found_reaped);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn kernel_takes_no_request_after_it_was_told_to_stop() {
        let kernel = Linux::new(true, true);
        let requests = kernel.reap_requests().unwrap();
        requests.open(&Arc::new(WakeEvent::new().unwrap()));
        assert!(requests.enter().is_some());
        requests.leave(&[], &mut VecDeque::new());
        kernel.stop_reaping();
        assert!(requests.enter().is_none());
    }
}
