use std::process;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::error::ContainerError;

/// Signals that do not end a process by default, `signal(7)`, that cannot be blocked, or that this program can cause itself.
const NOT_HELD: [Signal; 10] = [
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGKILL,
    Signal::SIGPIPE,
    Signal::SIGSTOP,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGURG,
    Signal::SIGWINCH,
];

/// The signals that reach the first process of a container before it executes its program. As pid 1 of a namespace it would
/// ignore them, `pid_namespaces(7)`, also those that end a container which has not been started.
#[derive(Debug)]
pub(super) struct EarlySignals {
    held: Option<(SigSet, SignalFd)>,
}

impl EarlySignals {
    /// Blocks the signals, if this process is pid 1.
    pub(super) fn hold() -> Result<Self, ContainerError> {
        if process::id() != 1 {
            return Ok(Self { held: None });
        }
        let mut signals = SigSet::all();
        NOT_HELD
            .into_iter()
            .for_each(|signal| signals.remove(signal));
        let hold = || {
            signals.thread_block()?;
            let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
            Ok((signals, SignalFd::with_flags(&signals, flags)?))
        };
        let held: nix::Result<_> = hold();
        let held = held.map_err(ContainerError::system("hold signals"))?;
        Ok(Self { held: Some(held) })
    }

    /// Lets signals reach the process again.
    ///
    /// # Errors
    ///
    /// [`ContainerError::Signaled`] if there was one, which would have ended a process without a namespace of its own.
    pub(super) fn release(self) -> Result<(), ContainerError> {
        let Some((signals, pending)) = self.held else {
            return Ok(());
        };
        let error = || ContainerError::system("release signals");
        if let Some(signal) = pending.read_signal().map_err(error())? {
            return Err(ContainerError::Signaled(signal.ssi_signo));
        }
        signals.thread_unblock().map_err(error())
    }
}
