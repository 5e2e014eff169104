//! Determines which ends a run can have had from what the driver did and the observer saw,
//! independently of the runtime.

use std::os::unix::process::ExitStatusExt;

use nix::libc::{SIGKILL, SIGTERM};
use vmm_runtime::{BoxStatus, Ending, FailureKind};

use crate::losses::Column;
use crate::observer::ObservedRun;
use crate::payload::{Kind, OWN_SIGNAL};
use crate::server::View;

/// One run of a box, or all runs since one start if the runtime restarts the box. Each possible
/// cause of its end is recorded before it takes effect.
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

    /// Judges an end that the runtime of this epoch reports. `candidates` are the observed runs
    /// that it may be the end of. If `may_be_unobserved`, it may also be that of another run.
    pub(crate) fn judge<'a>(
        &self,
        end: &View,
        candidates: impl IntoIterator<Item = &'a ObservedRun>,
        may_be_unobserved: bool,
        epoch: u64,
    ) -> Result<(), Column> {
        let mut candidates = candidates.into_iter().peekable();
        let is_unobserved = may_be_unobserved || candidates.peek().is_none();
        let is_possible = is_unobserved && self.allows(end, None, epoch)
            || candidates.any(|run| self.allows(end, Some(run), epoch));
        match end.ending {
            _ if is_possible => Ok(()),
            None => Err(Column::EndsLost),
            Some(_) => Err(Column::EndsWrong),
        }
    }

    fn allows(&self, end: &View, run: Option<&ObservedRun>, epoch: u64) -> bool {
        let killed = self.shim_killed || self.forced;
        let has_ended = run.is_some_and(|run| run.has_ended);
        let is_own = |code| {
            let own = run.map(|run| self.kind.code_of(run.number));
            has_ended && own == Some(code)
        };
        let is_possible = match &end.ending {
            Some(Ending::Exited { code }) => {
                let by_itself = match self.kind {
                    Kind::Exit | Kind::Success | Kind::Orphan => true,
                    Kind::Graceful => self.stopped,
                    // If the runtime ends first, its shim does not know that it was too early.
                    Kind::Early => self.interrupted,
                    _ => false,
                };
                by_itself && is_own(*code)
            }
            Some(Ending::Signaled { signal }) => {
                let by_itself = self.kind == Kind::Signal && *signal == OWN_SIGNAL as i32;
                // The payload blocks the signal before it reports that it has begun.
                let blocks = matches!(self.kind, Kind::Graceful | Kind::Deaf) && run.is_some();
                by_itself && has_ended
                    || self.signals.contains(signal)
                    || *signal == SIGKILL && killed
                    || *signal == SIGTERM && self.stopped && !blocks
            }
            // Only from Linux 6.15 does the kernel report the status of another process's child,
            // and only to a runtime that was attached.
            None => self.interrupted || self.shim_killed && self.runtime != epoch,
            Some(Ending::EndedEarly { exit }) => {
                let is_early = self.kind == Kind::Early;
                self.interrupted
                    || matches!(**exit, Ending::Exited { code } if is_early && is_own(code))
            }
            Some(Ending::Failed { kind, .. }) => {
                self.interrupted || self.kind == Kind::Missing && *kind == FailureKind::NotFound
            }
            Some(_) => false,
        };
        let is_true = match (&end.ending, run.and_then(ObservedRun::status)) {
            (Some(Ending::Exited { code }), Some(status)) => status.code() == Some(*code),
            // Without a record of the shim, its own end is reported.
            (Some(Ending::Signaled { signal }), Some(status)) => {
                status.signal() == Some(*signal) || *signal == SIGKILL && killed
            }
            _ => true,
        };
        let is_requested = self.stopped || self.interrupted;
        let is_status = match end.ending {
            Some(Ending::Exited { code: 0 }) => end.status == BoxStatus::Stopped,
            _ => is_requested || end.status == BoxStatus::Failed,
        };
        is_possible && is_true && is_status
    }
}
