//! Determines which ends a run can have had from what the driver and the payload did, independently
//! of the runtime.

use nix::libc::{SIGKILL, SIGTERM};
use vmm_runtime::{BoxStatus, Ending};

use crate::losses::Column;
use crate::payload::{Kind, Ledger, OWN_SIGNAL, code_of};
use crate::server::View;

/// One run of a box. Each possible cause of its end is recorded before it takes effect.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) kind: Kind,
    /// The number of earlier runs of the box.
    pub(crate) before: usize,
    /// The epoch of the runtime that was asked to start it.
    pub(crate) runtime: u64,
    /// Whether its start failed, or its runtime ended during the start.
    pub(crate) interrupted: bool,
    /// Whether it was stopped or removed, or the runtime shut down, during the start: the box may
    /// be as before.
    pub(crate) cancelled: bool,
    /// Whether the driver or the watchdog requested a stop.
    pub(crate) stopped: bool,
    /// Whether it may have been killed because it did not stop in time.
    pub(crate) forced: bool,
    /// The signals that the driver sent to the payload.
    pub(crate) signals: Vec<i32>,
    pub(crate) shim_killed: bool,
}

impl Run {
    pub(crate) fn new(kind: Kind, before: usize, runtime: u64) -> Self {
        Self {
            kind,
            before,
            runtime,
            interrupted: false,
            cancelled: false,
            stopped: false,
            forced: false,
            signals: Vec::new(),
            shim_killed: false,
        }
    }

    pub(crate) fn stop(&mut self, forced: bool) {
        self.stopped = true;
        self.forced |= forced || self.kind == Kind::Deaf;
    }

    /// Returns whether its payload has begun.
    pub(crate) fn has_begun(&self, ledger: &Ledger) -> bool {
        ledger.begun > self.before
    }

    /// Judges an end that the runtime of this epoch reports.
    pub(crate) fn judge(&self, end: &View, ledger: &Ledger, runtime: u64) -> Result<(), Column> {
        let killed = self.shim_killed || self.forced;
        let possible = match end.ending {
            Some(Ending::Exited { code }) => {
                let by_itself = match self.kind {
                    Kind::Exit | Kind::Orphan => true,
                    Kind::Graceful => self.stopped,
                    _ => false,
                };
                let own = ledger.ended && self.has_begun(ledger) && code == code_of(ledger.begun);
                by_itself && own
            }
            Some(Ending::Signaled { signal }) => {
                let by_itself = self.kind == Kind::Signal && signal == OWN_SIGNAL as i32;
                // The payload blocks the signal before it writes that it has begun.
                let blocks = matches!(self.kind, Kind::Graceful | Kind::Deaf);
                let obeys = !(blocks && self.has_begun(ledger));
                by_itself && ledger.ended
                    || self.signals.contains(&signal)
                    || signal == SIGKILL && killed
                    || signal == SIGTERM && self.stopped && obeys
            }
            // Only from Linux 6.15 does the kernel report the status of another process's child,
            // and only to a runtime that was attached.
            None => self.interrupted || self.shim_killed && self.runtime != runtime,
            Some(Ending::Failed { .. }) => self.interrupted,
            Some(_) => false,
        };
        let unrequested = !self.stopped && !self.interrupted;
        match end.ending {
            _ if possible && !(unrequested && end.status != BoxStatus::Failed) => Ok(()),
            None => Err(Column::EndsLost),
            Some(_) => Err(Column::EndsWrong),
        }
    }
}
