use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use pidfd_spawn::Child;
use rustix::event::{PollFd, PollFlags};
use vmm_protocol::pidfd::{self, has_exited};
use vmm_protocol::poll::wait_until;

use super::console::Console;
use super::executions::Executions;
use super::notify_socket::NotifySocket;
use crate::{ControlChannel, EngineError, Pause, Payload, PayloadExit, descendants};

/// A command, and all processes that it starts.
#[derive(Debug)]
pub(crate) struct ProcessPayload {
    pid: Pid,
    /// `None` once the child is reaped: the kernel may then reuse its pid.
    child: Mutex<Option<Child>>,
    /// `None` once the payload is ready: with a full socket that is never read, the payload would
    /// block.
    notify: Mutex<Option<NotifySocket>>,
    /// `None` once the log contains all output.
    console: Mutex<Option<Console>>,
    /// The commands that clients run beside the payload.
    executions: Executions,
    /// Whether the shim has killed the payload, which rules out that the kernel did for lack of
    /// memory.
    is_killed: AtomicBool,
}

/// How often to reap orphans while the payload is not ready.
const REAP_INTERVAL: Duration = Duration::from_millis(500);

/// How long to wait for a descriptor of the payload.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

impl ProcessPayload {
    pub(super) fn new(
        child: Child,
        notify: Option<NotifySocket>,
        console: Console,
        executions: Executions,
    ) -> Self {
        Self {
            pid: Pid::from_raw(child.id().cast_signed()),
            child: Mutex::new(Some(child)),
            notify: Mutex::new(notify),
            console: Mutex::new(Some(console)),
            executions,
            is_killed: AtomicBool::new(false),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a pidfd that stays open when the child is reaped.
    fn pidfd(&self) -> io::Result<OwnedFd> {
        match &*self.child() {
            Some(child) => child.pidfd().try_clone_to_owned(),
            None => Err(Errno::ECHILD.into()),
        }
    }

    /// Waits until the payload has exited, for at most `timeout`. Returns whether it has.
    pub(crate) fn wait_exited(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let result = self.pidfd();
            match result.and_then(|pidfd| pidfd::wait_exited(&pidfd, deadline)) {
                Ok(has_exited) => return has_exited,
                Err(error) if error.raw_os_error() == Some(Errno::ECHILD as i32) => return true,
                // No descriptor is left.
                Err(_) if Instant::now() < deadline => thread::sleep(RETRY_INTERVAL),
                Err(_) => return false,
            }
        }
    }

    /// Waits until the payload has ended, and returns true. With `WNOHANG`, returns false
    /// immediately if it is still running. Leaves the payload waitable.
    ///
    /// Reaps all other children: executions, and orphans, whose subreaper the shim is.
    fn has_ended(&self, flags: WaitPidFlag) -> io::Result<bool> {
        let flags = flags | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::All, flags) {
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(status) if status.pid() == Some(self.pid) => return Ok(true),
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        let _ = descendants::reap(pid, &mut |pid, status| {
                            self.executions.report(pid, status);
                        });
                    }
                }
                Err(Errno::EINTR) => {}
                // A real-time signal ended a child. nix cannot represent that signal, so it returns
                // an error without the pid.
                Err(Errno::EINVAL) if self.is_waitable() => return Ok(true),
                Err(Errno::EINVAL) if self.reap_others() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn reap_others(&self) -> bool {
        descendants::reap_all_except(self.pid, |pid, status| self.executions.report(pid, status))
    }

    /// Blocks until the payload has exited, and reaps the orphans that exit before.
    ///
    /// A descendant that traces the payload keeps `waitid` from reporting the exit, for as long as it
    /// lives: the pidfd reports it all the same.
    fn wait_for_exit(&self) -> io::Result<()> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&Signal::SIGCHLD.into(), flags);
        let (Ok(pidfd), Ok(children)) = (self.pidfd(), children) else {
            // No descriptor is left.
            return self.has_ended(WaitPidFlag::empty()).map(drop);
        };
        loop {
            if self.has_ended(WaitPidFlag::WNOHANG)? || has_exited(&pidfd) {
                return Ok(());
            }
            let mut fds = [
                PollFd::new(&pidfd, PollFlags::IN),
                PollFd::new(&children, PollFlags::IN),
            ];
            wait_until(&mut fds, None)?;
            while let Ok(Some(_)) = children.read_signal() {}
        }
    }

    /// Waits as [`Payload::wait`] does. Calls `before_log_ends` when all processes of the payload have
    /// ended, for a caller that adds to the console log.
    pub(crate) fn wait_after(&self, before_log_ends: impl FnOnce()) -> io::Result<PayloadExit> {
        self.wait_for_exit()?;
        let is_out_of_memory = self.has_run_out_of_memory();
        // An execution that starts after this would outlive the cleanup.
        self.executions.close();
        // The kernel cannot reuse the id of the process group until the payload is reaped.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let report = |pid, status| self.executions.report(pid, status);
        descendants::kill_all_except(Some(self.pid), report);
        let mut slot = self.child();
        let status = match slot.as_mut() {
            Some(child) => child.wait()?,
            None => return Err(Errno::ECHILD.into()),
        };
        *slot = None;
        drop(slot);
        before_log_ends();
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(console) = console.take() {
            console.finish();
        }
        Ok(match status.signal() {
            Some(SIGKILL) if is_out_of_memory => PayloadExit::OutOfMemory,
            Some(signal) => PayloadExit::Signal(signal),
            None => PayloadExit::Code(status.code().unwrap_or(255)),
        })
    }

    /// Returns true if SIGKILL has ended the payload, which was not sent by the shim, and the kernel has
    /// killed a process of it for lack of memory.
    fn has_run_out_of_memory(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let status = waitid(Id::Pid(self.pid), flags);
        let is_sigkilled = matches!(status, Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)));
        is_sigkilled
            && !self.is_killed.load(Ordering::Relaxed)
            && self.executions.oom_kills().attribute_to_payload()
    }

    /// Sends SIGTERM to the payload, and lets it continue if it is frozen or stopped.
    pub(crate) fn terminate(&self) {
        let child = self.child();
        if child.is_some() {
            let _ = kill(self.pid, Signal::SIGTERM);
            // A frozen process handles SIGTERM only after it is thawed.
            self.executions.thaw();
            // A stopped process handles SIGTERM only after it is continued.
            let _ = kill(self.pid, Signal::SIGCONT);
        }
    }

    fn is_waitable(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(self.pid), flags) {
            Ok(status) => status != WaitStatus::StillAlive,
            // As above: the call itself is valid.
            Err(error) => error == Errno::EINVAL,
        }
    }
}

impl Payload for ProcessPayload {
    fn pid(&self) -> Option<u32> {
        Some(self.pid.as_raw().cast_unsigned())
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        let notify = self
            .notify
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(notify) = notify else {
            return Ok(());
        };
        let system_error =
            |error| EngineError::system("wait for the payload's notification")(error);
        let pidfd = self.pidfd().map_err(system_error)?;
        loop {
            if notify.receive_ready() {
                return Ok(());
            }
            if self.has_ended(WaitPidFlag::WNOHANG).map_err(system_error)? || has_exited(&pidfd) {
                return Err(EngineError::EndedEarly);
            }
            let mut fds = [
                PollFd::new(&notify, PollFlags::IN),
                PollFd::new(&pidfd, PollFlags::IN),
            ];
            let deadline = Instant::now() + REAP_INTERVAL;
            wait_until(&mut fds, Some(deadline)).map_err(system_error)?;
        }
    }

    fn control_channel(&self) -> Option<&dyn ControlChannel> {
        Some(&self.executions)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(&self.executions)
    }

    fn stop(&self, _grace: Duration) {
        self.terminate();
    }

    fn kill(&self) {
        let child = self.child();
        if child.is_some() {
            self.is_killed.store(true, Ordering::Relaxed);
            let _ = killpg(self.pid, Signal::SIGKILL);
            // The payload may have joined another process group.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        self.wait_after(|| {})
    }
}
