use crate::error::ShimError;
use crate::process::Exit;

pub(crate) const SIGKILL: i32 = 9;

/// The highest number of a signal, signal(7).
const MAX_SIGNAL: u32 = 64;

/// SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG and SIGWINCH, which do not end a process by default,
/// signal(7), and 0, which is not sent.
const NOT_DEADLY: [i32; 9] = [0, 17, 18, 19, 20, 21, 22, 23, 28];

/// A signal of a client to a process, or to all of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalRequest {
    pub(crate) signal: i32,
    pub(crate) all: bool,
}

/// What a signal does to a process in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignalEffect {
    /// Nothing now. A process that is being started gets the signal when it runs.
    None,
    /// It has ended a process that had not been started.
    Ended(Exit),
    /// It has to be sent.
    Send,
}

impl SignalRequest {
    pub(crate) const KILL: Self = Self {
        signal: SIGKILL,
        all: false,
    };

    pub(crate) fn new(signal: u32, all: bool) -> Result<Self, ShimError> {
        if signal > MAX_SIGNAL {
            return Err(ShimError::Signal(signal));
        }
        let signal = signal.cast_signed();
        Ok(Self { signal, all })
    }

    /// Returns whether the signal ends a process that does not handle it.
    pub(crate) fn is_deadly(self) -> bool {
        !NOT_DEADLY.contains(&self.signal)
    }
}
