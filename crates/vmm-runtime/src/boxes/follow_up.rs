//! What follows the end of a run: restarts and the automatic removal. The rules for restarts are in
//! [`RestartState`].

use std::time::Duration;

use vmm_protocol::boot_id;

use super::gate::Gate;
use super::state::{Phase, State};
use super::{MicroBox, Outcome, StartRequest};
use crate::restart::RestartState;
use crate::{BoxStatus, RestartPolicy};

/// The pause after a restart or a removal that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is due for a box that is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FollowUp {
    Restart,
    Remove,
}

/// Returns the id of this boot, or a text that differs from every id if it cannot be read.
fn this_boot() -> String {
    boot_id().unwrap_or_default()
}

impl State {
    fn policy(&self) -> RestartPolicy {
        self.record.spec.restart
    }

    /// Returns whether something follows the end of a run, which must therefore be on disk when it
    /// begins: a power cut can remove all other traces of it.
    fn saves_runs(&self) -> bool {
        !self.policy().is_no() || self.record.spec.auto_remove
    }

    fn set_restart(&mut self, restart: RestartState) {
        if self.saves_runs() && self.record.restart != restart {
            self.record.restart = restart;
            self.version += 1;
        }
    }

    fn set_launched_in(&mut self, boot: Option<String>) {
        if self.saves_runs() && self.record.launched_in != boot {
            self.record.launched_in = boot;
            self.version += 1;
        }
    }

    /// Notes the launch of a start.
    pub(super) fn note_launch(&mut self, request: StartRequest) {
        self.set_launched_in(Some(this_boot()));
        self.set_restart(if request.is_restart {
            self.record.restart.after_restart()
        } else {
            RestartState::after_start()
        });
    }

    /// Notes that no launched run is left.
    pub(super) fn note_no_run(&mut self) {
        self.set_launched_in(None);
    }

    /// Notes that an earlier runtime has started the box.
    ///
    /// With the policy `always` it may also have restarted the box after a stop, when it opened the
    /// home. With the others, a stop that is saved comes after the last start.
    pub(super) fn note_recovered_run(&mut self) {
        let stopped = self.record.restart.stopped && self.policy() != RestartPolicy::Always;
        self.set_restart(RestartState {
            started: true,
            stopped,
            ..self.record.restart
        });
        self.set_launched_in(Some(this_boot()));
    }

    /// Notes that a user has stopped or removed the box, which ends its restarts.
    pub(super) fn note_stop(&mut self) {
        if self.record.restart.started {
            self.set_restart(self.record.restart.after_stop());
        }
    }

    /// Decides whether a restart follows the end of a run with `outcome`. Called before the phase
    /// changes.
    pub(super) fn note_end(&mut self, outcome: &Outcome) {
        self.note_no_run();
        let is_first_start =
            matches!(self.phase, Phase::Starting { .. }) && !self.record.restart.due;
        let is_shutdown = self.gate == Gate::Closed && outcome.requested;
        if is_first_start || is_shutdown {
            return;
        }
        let ran = match self.phase {
            Phase::Running { .. } => outcome.at.duration_since(self.updated_at),
            Phase::Starting { .. } => jiff::SignedDuration::ZERO,
            // It ended while no runtime was attached.
            _ => jiff::SignedDuration::MAX,
        };
        let ran = Duration::try_from(ran).unwrap_or_default();
        let failed = outcome.status == BoxStatus::Failed;
        self.set_restart(self.record.restart.after_end(self.policy(), failed, ran));
    }

    /// Returns whether a restart of the box is due and has not begun.
    pub(super) fn awaits_restart(&self) -> bool {
        self.record.restart.due && matches!(self.phase, Phase::Idle)
    }

    /// Returns whether a restart of the box is due or in progress.
    pub(super) fn is_restarting(&self) -> bool {
        self.record.restart.due && matches!(self.phase, Phase::Idle | Phase::Starting { .. })
    }

    /// Returns what is due now that the box is not running.
    fn follow_up(&self) -> Option<FollowUp> {
        if self.gate != Gate::Open || !matches!(self.phase, Phase::Idle) {
            return None;
        }
        if self.record.restart.due {
            return Some(FollowUp::Restart);
        }
        let has_ended = self.record.last.is_some();
        (self.record.spec.auto_remove && has_ended).then_some(FollowUp::Remove)
    }
}

impl MicroBox {
    /// Returns whether the box has a restart policy, whose state must be on disk when a stop
    /// returns.
    pub(crate) fn has_restart_policy(&self) -> bool {
        !self.state().policy().is_no()
    }

    /// Returns whether the launch of a run must be on disk before its payload runs.
    pub(crate) fn saves_runs(&self) -> bool {
        self.state().saves_runs()
    }

    /// Returns the boot of the host in which an earlier runtime has launched a run without seeing
    /// its end.
    pub(crate) fn launched_in(&self) -> Option<String> {
        self.state().record.launched_in.clone()
    }

    /// Marks the launch of an earlier runtime as one that has not reached a payload. A cleanup is due all the
    /// same: a payload could have deleted all records of its run.
    pub(crate) fn mark_not_launched(&self) {
        let mut state = self.state();
        state.note_no_run();
        state.record.cleanup_due = true;
    }

    /// Returns what is due for the box.
    pub(crate) fn follow_up(&self) -> Option<FollowUp> {
        self.state().follow_up()
    }

    /// Schedules what is due for the box, not earlier than after `min_delay`.
    pub(super) fn schedule_follow_up(&self, state: &State, min_delay: Duration) {
        let restart = &state.record.restart;
        match state.follow_up() {
            Some(FollowUp::Restart) => {
                let delay = restart.delay().max(min_delay);
                self.due.insert(self.id(), delay, restart.quick_ends);
            }
            Some(FollowUp::Remove) => self.due.insert(self.id(), min_delay, 0),
            None => {}
        }
    }

    /// Schedules again what has failed, if it is still due.
    pub(crate) fn retry_follow_up(&self) {
        self.schedule_follow_up(&self.state(), RETRY_PAUSE);
    }

    /// Schedules what is due when a runtime has opened the home.
    pub(crate) fn resume_follow_up(&self) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Idle) && state.damage.is_none() {
            let restart = state.record.restart.after_opening(state.policy());
            state.set_restart(restart);
            self.schedule_follow_up(&state, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use tokio_util::sync::CancellationToken;
    use vmm_protocol::BoxDir;

    use super::*;
    use crate::boxes::BoxRecord;
    use crate::event::EventBus;
    use crate::{BoxSpec, RuntimeMetricsStorage, StartError};

    #[test]
    fn a_start_is_saved_as_launched_until_it_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let spec = BoxSpec::new(["true"]).auto_remove(true);
        let record = BoxRecord::new("b".parse().unwrap(), Timestamp::now(), spec);
        let events = Arc::new(EventBus::new(RuntimeMetricsStorage::default()));
        let dir = BoxDir::new(dir.path());
        let bx = MicroBox::new(record, None, dir, events, Arc::default());
        let saved_launch = || {
            bx.save().unwrap();
            BoxRecord::read(bx.dir()).unwrap().launched_in
        };

        let request = StartRequest::by_user(bx.stop_epoch());
        bx.begin_start(request, &CancellationToken::new()).unwrap();
        assert_eq!(saved_launch(), boot_id().ok());
        // A power cut during the cleanup that follows must not leave the launch.
        bx.mark_start_failed(StartError::Interrupted);
        assert_eq!(saved_launch(), None);
    }
}
