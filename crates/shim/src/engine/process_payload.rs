use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;

use super::notify_socket::NotifySocket;
use super::{EngineError, Payload, PayloadExit};
use crate::descendants;

/// A command as the payload, and whatever it starts.
#[derive(Debug)]
pub(super) struct ProcessPayload {
    pid: Pid,
    /// `None` once it is collected: its number may then be somebody else's.
    child: Mutex<Option<Child>>,
    /// `None` once it is ready: nobody reads it then, and the payload would hang when it is full.
    notify: Mutex<Option<NotifySocket>>,
}

/// How often to look for an early end where there is no pidfd to poll, in milliseconds.
const LOOK_EVERY: u16 = 20;

impl ProcessPayload {
    pub(super) fn new(child: Child, notify: Option<NotifySocket>) -> Self {
        Self {
            pid: Pid::from_raw(child.id().cast_signed()),
            child: Mutex::new(Some(child)),
            notify: Mutex::new(notify),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        !matches!(
            waitid(Id::Pid(self.pid), flags),
            Ok(nix::sys::wait::WaitStatus::StillAlive) | Err(Errno::EINTR)
        )
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid.as_raw())?;
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
    }

    /// Leaves the payload waitable; collects adopted orphans on the way.
    fn wait_for_its_end(&self) -> io::Result<()> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::All, flags).map(|status| status.pid()) {
                Ok(Some(pid)) if pid != self.pid => {
                    let _ = waitpid(pid, None);
                }
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
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
        let pidfd = self.pidfd();
        let timeout = match pidfd {
            Some(_) => PollTimeout::NONE,
            None => PollTimeout::from(LOOK_EVERY),
        };
        loop {
            if notify.says_ready() {
                return Ok(());
            }
            if self.has_ended() {
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
                Err(error) => {
                    let system = EngineError::system("wait for the payload's notification");
                    return Err(system(error.into()));
                }
            }
        }
    }

    fn stop(&self) {
        let child = self.child();
        if child.is_some() {
            let _ = kill(self.pid, Signal::SIGTERM);
        }
    }

    fn kill(&self) {
        let child = self.child();
        if child.is_some() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        self.wait_for_its_end()?;
        // Until the payload is collected, the number of its group cannot be another's.
        let _ = killpg(self.pid, Signal::SIGKILL);
        descendants::end_all_but(Some(self.pid));
        let mut slot = self.child();
        let status = match slot.as_mut() {
            Some(child) => child.wait()?,
            None => return Err(Errno::ECHILD.into()),
        };
        *slot = None;
        Ok(match status.signal() {
            Some(signal) => PayloadExit::Signal(signal),
            None => PayloadExit::Code(status.code().unwrap_or(255)),
        })
    }
}
