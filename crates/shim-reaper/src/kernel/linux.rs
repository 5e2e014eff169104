use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::orphans::OrphanSearch;
use super::procfs;
use super::{
    ForkedChildren, Member, NoPidfd, Orphan, Orphans, ProcStat, ProcessTable, Spawned, Target,
    Until, WaitResult, Watches,
};
use crate::Signal;
use crate::command::sealed::CommandRef;
use crate::pipes::Pipes;
use crate::sys::{self, ChildExit, WaitFor};
use crate::thread::spawn_thread;

/// The most descriptors that std opens for a spawn with a fork: three pipes, and a pair of sockets.
const MAX_DESCRIPTORS_OF_STD: usize = 8;

/// The running kernel.
#[derive(Debug)]
pub(crate) struct Linux {
    /// Whether the kernel has pidfds and the embedder allows them.
    pidfds: AtomicBool,
    /// Why the kernel has no pidfds.
    pidfd_failure: OnceLock<io::Error>,
    /// Whether the kernel has `P_PIDFD`.
    wait_by_pidfd: AtomicBool,
    watches: Watches,
    orphans: OrphanSearch,
}

impl Linux {
    pub(crate) fn new(pidfds: bool) -> Self {
        Self {
            pidfds: AtomicBool::new(pidfds),
            pidfd_failure: OnceLock::new(),
            wait_by_pidfd: AtomicBool::new(true),
            watches: Watches::default(),
            orphans: OrphanSearch::default(),
        }
    }

    pub(crate) fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Returns the epoll descriptor, which is readable when a watch has an event. Returns `None`
    /// without pidfds, and if the epoll cannot be created.
    pub(crate) fn readiness_fd(&self) -> Option<BorrowedFd<'_>> {
        if !self.pidfds.load(Ordering::Relaxed) {
            return None;
        }
        self.watches.fd().ok()
    }

    /// Spawns a child with `pidfd-spawn`, which returns its pidfd.
    fn spawn_native(&self, command: &mut pidfd_spawn::Command) -> io::Result<Spawned<OwnedFd>> {
        let child = command.spawn()?.into_parts();
        Ok(Spawned {
            pid: child.pid,
            pidfd: self.accept(child.pidfd),
            pipes: Pipes {
                stdin: child.stdin,
                stdout: child.stdout,
                stderr: child.stderr,
            },
        })
    }

    fn spawn_std(
        &self,
        command: &mut Command,
        process_group: Option<i32>,
        early_pidfd: bool,
    ) -> io::Result<Spawned<OwnedFd>> {
        let early_pidfd = self.pidfds.load(Ordering::Relaxed)
            && (early_pidfd || sys::kernel_reaps_children())
            // Without a `fork`, std reports a directory that the child cannot enter without a wait
            // for the child. The path with a dot needs the permission to search the directory.
            && command.get_current_dir().is_none_or(|dir| dir.join(".").is_dir());
        if let Some(sockets) = early_pidfd.then(report_sockets).flatten() {
            return self.spawn_with_early_pidfd(command, process_group, sockets);
        }
        if let Some(pgroup) = process_group {
            command.process_group(pgroup);
        }
        let child = catch_panic(command)?;
        Ok(Spawned {
            pid: child.id(),
            pidfd: self.open(child.id()),
            pipes: child.into(),
        })
    }

    /// Spawns a child that opens its own pidfd before it executes the program, so that no wait can
    /// reap it before its pidfd is open.
    fn spawn_with_early_pidfd(
        &self,
        command: &mut Command,
        mut process_group: Option<i32>,
        (receiver, sender): (UnixStream, UnixStream),
    ) -> io::Result<Spawned<OwnedFd>> {
        // Creating a group cannot fail, so std does it: before the closures of the command, which may
        // make the group the foreground group of a terminal.
        if let Some(new_group) = process_group.take_if(|pgroup| *pgroup == 0) {
            command.process_group(new_group);
        }
        let sender = Arc::new(sender);
        sys::report_before_exec(command, process_group, &sender);
        let child = catch_panic(command)?;
        drop(sender);
        let report = sys::receive_report(&receiver);
        let pid = child.id();
        let pidfd = report.pidfd.map_or_else(|| self.open(pid), Ok);
        if let Some(error) = report.exec_error {
            self.reap_exiting(pid, pidfd.ok());
            return Err(error);
        }
        Ok(Spawned {
            pid,
            pidfd,
            pipes: child.into(),
        })
    }

    /// Waits until a child that is about to exit has exited, and reaps it.
    fn reap_exiting(&self, pid: u32, pidfd: Option<OwnedFd>) {
        if let Some(pidfd) = pidfd {
            sys::pidfd_await_exit(pidfd.as_fd(), None);
            self.reap(Target::Pidfd(pid, &pidfd));
            return;
        }
        // Any other error means that a foreign wait has reaped it.
        while waitpid(as_pid(pid), None) == Err(Errno::EINTR) {}
    }

    fn wait(&self, target: Target<'_, OwnedFd>, keep_zombie: bool) -> WaitResult {
        let found = match target {
            Target::Pid(pid) => sys::waitid(WaitFor::Pid(pid), keep_zombie),
            Target::Pidfd(pid, pidfd) if self.wait_by_pidfd.load(Ordering::Relaxed) => {
                match sys::waitid(WaitFor::Pidfd(pidfd.as_fd()), keep_zombie) {
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        self.wait_by_pidfd.store(false, Ordering::Relaxed);
                        wait_by_guarded_pid(pid, pidfd, keep_zombie)
                    }
                    found => found,
                }
            }
            Target::Pidfd(pid, pidfd) => wait_by_guarded_pid(pid, pidfd, keep_zombie),
        };
        match found {
            Ok(Some(exit)) => WaitResult::Exited(exit),
            Ok(None) => WaitResult::Running,
            Err(_) => WaitResult::NotWaitable,
        }
    }
}

/// Returns sockets for the report of a child, unless std would lack descriptors for its spawn. It needs
/// none for a plain spawn without a report.
fn report_sockets() -> Option<(UnixStream, UnixStream)> {
    let sockets = UnixStream::pair().ok()?;
    let spare = (0..MAX_DESCRIPTORS_OF_STD).map(|_| sockets.0.try_clone());
    let spare: io::Result<Vec<_>> = spare.collect();
    spare.is_ok().then_some(sockets)
}

/// Spawns a child with std, which waits for a child that it cannot prepare, for example because of its
/// user ID, and panics if another wait has reaped that child.
fn catch_panic(command: &mut Command) -> io::Result<Child> {
    panic::catch_unwind(AssertUnwindSafe(|| command.spawn())).unwrap_or_else(|_| {
        Err(io::Error::other(
            "cannot prepare the process, and it was reaped by a foreign wait or because SIGCHLD is \
             ignored; use shim_reaper::Command",
        ))
    })
}

/// Waits by pid after the pidfd has proved that the pid is not recycled. Linux 5.3 has pidfds but
/// cannot wait by them.
fn wait_by_guarded_pid(
    pid: u32,
    pidfd: &OwnedFd,
    keep_zombie: bool,
) -> io::Result<Option<ChildExit>> {
    sys::pidfd_send_signal(pidfd.as_fd(), None)?;
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
        if !self.pidfds.load(Ordering::Relaxed) {
            return Err(NoPidfd::Unsupported);
        }
        sys::pidfd_open(pid).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => NoPidfd::NoProcess,
            Some(libc::ENOSYS | libc::EPERM | libc::ENODEV) => {
                self.pidfds.store(false, Ordering::Relaxed);
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
        if self.pidfds.load(Ordering::Relaxed) {
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
        sys::pidfd_send_signal(pidfd.as_fd(), None)
            .is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH))
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

    fn group_members(&self, pgid: u32) -> io::Result<Vec<Member>> {
        procfs::group_members(pgid)
    }

    fn stat(&self, pid: u32) -> io::Result<Option<ProcStat>> {
        ProcStat::read(pid)
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
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn one_exited_process_among_running_ones_is_noticed() {
        let kernel = Linux::new(true);
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
}
