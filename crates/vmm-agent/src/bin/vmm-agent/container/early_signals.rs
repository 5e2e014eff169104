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
    held: Option<SignalFd>,
}

/// Blocks the signals in this thread, for the child that it creates next.
pub(super) fn block() -> nix::Result<()> {
    early().thread_block()
}

impl EarlySignals {
    /// Holds the signals, if this process is pid 1. It was created with the signals blocked.
    pub(super) fn hold() -> Result<Self, ContainerError> {
        if process::id() != 1 {
            return Ok(Self { held: None });
        }
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let held = SignalFd::with_flags(&early(), flags);
        let held = held.map_err(ContainerError::system("hold signals"))?;
        Ok(Self { held: Some(held) })
    }

    /// Fails if there was a signal. The program that this process executes begins with all signals unblocked. A signal
    /// after this call is one that pid 1 ignores until the program handles it.
    ///
    /// # Errors
    ///
    /// [`ContainerError::Signaled`], which would have ended a process without a namespace of its own.
    pub(super) fn check(&self) -> Result<(), ContainerError> {
        let signal = self.held.as_ref().map(SignalFd::read_signal).transpose();
        match signal.map_err(ContainerError::system("read a signal"))? {
            Some(Some(signal)) => Err(ContainerError::Signaled(signal.ssi_signo)),
            _ => Ok(()),
        }
    }
}

fn early() -> SigSet {
    let mut signals = SigSet::all();
    for signal in NOT_HELD {
        signals.remove(signal);
    }
    signals
}
