use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions};
use vmm_protocol::ControlGroup;

use super::console::Console;
use super::notify_socket::NotifySocket;
use crate::{EngineError, Payload, PayloadExit, descendants};

/// A command as the payload, and whatever it starts.
#[derive(Debug)]
pub(super) struct ProcessPayload {
    pid: Pid,
    /// `None` once it is collected: its number may then be somebody else's.
    child: Mutex<Option<Child>>,
    /// `None` once it is ready: nobody reads it then, and the payload would hang when it is full.
    notify: Mutex<Option<NotifySocket>>,
    /// `None` once it is finished.
    console: Mutex<Option<Console>>,
    /// By this shim, and so not by the kernel for want of memory.
    is_killed: AtomicBool,
}

/// How often to look for an early end where there is no pidfd to poll, in milliseconds.
const LOOK_EVERY: u16 = 20;

/// How often to collect orphans while polling, in milliseconds.
const COLLECT_EVERY: u16 = 500;

impl ProcessPayload {
    pub(super) fn new(child: Child, notify: Option<NotifySocket>, console: Console) -> Self {
        Self {
            pid: Pid::from_raw(child.id().cast_signed()),
            child: Mutex::new(Some(child)),
            notify: Mutex::new(notify),
            console: Mutex::new(Some(console)),
            is_killed: AtomicBool::new(false),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid.as_raw())?;
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
    }

    /// Whether it has ended; with `WNOHANG` among the flags, by now. Leaves it waitable.
    ///
    /// Waits on any child: every child of a shim is its payload's, and orphans that the shim has
    /// adopted as their subreaper have nobody else to collect them.
    fn has_ended(&self, flags: WaitPidFlag) -> io::Result<bool> {
        let flags = flags | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::All, flags) {
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(status) if status.pid() == Some(self.pid) => return Ok(true),
                Ok(status) => {
                    let _ = waitpid(status.pid(), Some(WaitPidFlag::WNOHANG));
                }
                Err(Errno::EINTR) => {}
                // By a real-time signal, for which nix has no name: there is one, but not who.
                Err(Errno::EINVAL) if self.is_waitable() => return Ok(true),
                Err(Errno::EINVAL) if descendants::collect_all_but(self.pid) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Blocks until the payload has exited, and reaps the orphans that exit before.
    ///
    /// A descendant that traces the payload keeps `waitid` from reporting the exit, for as long as it
    /// lives: the pidfd reports it all the same.
    fn wait_for_exit(&self) -> io::Result<()> {
        let Some(pidfd) = self.pidfd() else {
            return self.has_ended(WaitPidFlag::empty()).map(drop);
        };
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&Signal::SIGCHLD.into(), flags)?;
        loop {
            if self.has_ended(WaitPidFlag::WNOHANG)? || has_exited(&pidfd) {
                return Ok(());
            }
            let mut polled = [
                PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(children.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            while let Ok(Some(_)) = children.read_signal() {}
        }
    }

    /// Whom the kernel has killed for that, it does not say: any of the payload's processes.
    fn has_run_out_of_memory(&self) -> bool {
        !self.is_killed.load(Ordering::Relaxed)
            && ControlGroup::of_this_process().is_some_and(ControlGroup::has_run_out_of_memory)
    }

    fn is_waitable(&self) -> bool {
        let flags = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        rustix::process::Pid::from_raw(self.pid.as_raw()).is_some_and(|pid| {
            matches!(
                rustix::process::waitid(WaitId::Pid(pid), flags),
                Ok(Some(_))
            )
        })
    }
}

/// Returns whether the process is a zombie, or gone.
fn has_exited(pidfd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
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
        let pidfd = self.pidfd();
        let timeout = match pidfd {
            Some(_) => PollTimeout::from(COLLECT_EVERY),
            None => PollTimeout::from(LOOK_EVERY),
        };
        let system = |error| EngineError::system("wait for the payload's notification")(error);
        loop {
            if notify.says_ready() {
                return Ok(());
            }
            if self.has_ended(WaitPidFlag::WNOHANG).map_err(system)?
                || pidfd.as_ref().is_some_and(has_exited)
            {
                return Err(EngineError::EndedEarly);
            }
            let mut polled = vec![PollFd::new(notify.as_fd(), PollFlags::POLLIN)];
            polled.extend(
                pidfd
                    .as_ref()
                    .map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)),
            );
            match poll(&mut polled, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(system(error.into())),
            }
        }
    }

    fn stop(&self) {
        let child = self.child();
        if child.is_some() {
            let _ = kill(self.pid, Signal::SIGTERM);
            // A stopped process obeys when it is continued.
            let _ = kill(self.pid, Signal::SIGCONT);
        }
    }

    fn kill(&self) {
        let child = self.child();
        if child.is_some() {
            self.is_killed.store(true, Ordering::Relaxed);
            let _ = killpg(self.pid, Signal::SIGKILL);
            // It may have joined another group.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        self.wait_for_exit()?;
        // Until the payload is collected, the number of its group cannot be another's.
        let _ = killpg(self.pid, Signal::SIGKILL);
        descendants::end_all_but(Some(self.pid));
        let mut slot = self.child();
        let status = match slot.as_mut() {
            Some(child) => child.wait()?,
            None => return Err(Errno::ECHILD.into()),
        };
        *slot = None;
        drop(slot);
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(console) = console.take() {
            console.finish();
        }
        Ok(match status.signal() {
            Some(SIGKILL) if self.has_run_out_of_memory() => PayloadExit::OutOfMemory,
            Some(signal) => PayloadExit::Signal(signal),
            None => PayloadExit::Code(status.code().unwrap_or(255)),
        })
    }
}
