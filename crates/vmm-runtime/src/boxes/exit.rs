//! How a box learns of the end of a run, saves it and reports it.

use std::sync::PoisonError;
use std::time::Duration;

use shim_reaper::ShimHandle;
use vmm_protocol::procfs::Stat;
use vmm_protocol::{
    ControlGroup, Ending, ExitRecord, FileError, PidRecord, is_resource_exhaustion, with_causes,
};

use super::gate::Gate;
use super::state::Phase;
use super::{BoxStatus, MicroBox, Outcome};
use crate::process::CleanupTarget;
use crate::shim::record_matches;
use crate::{BoxChange, ShimHandler, StartError};

/// Returns whether the payload is still alive in the session of its dead shim, which could not wait
/// for it.
fn payload_survives(shim: &ShimHandler) -> bool {
    let stat = shim.payload_pid().map(Stat::of);
    matches!(stat, Some(Ok(Some(stat))) if stat.session == shim.pid())
}

impl MicroBox {
    /// Marks the start as failed, and adds to the error what the payload printed last. The caller
    /// cleans up, and then calls [`cancel_start`](Self::cancel_start) if the start was interrupted.
    /// Blocks on the disk.
    pub(crate) fn mark_start_failed(&self, error: StartError) -> StartError {
        // The next runtime needs to know which shim failed.
        let record = self.dir().shim_record();
        let starting = self.state().starting_shim();
        let mut output = None;
        let mut may_be_left = None;
        // Without a shim nothing can be left.
        if let Some((shim, console_start)) = starting {
            if !self.has_recorded_ending(&shim, &error) || self.has_control_group(shim.id()) {
                may_be_left = Some(shim.id());
            }
            output = self.dir().last_console_lines(console_start);
        }
        let mut state = self.state();
        if may_be_left.is_some() {
            let target = self.cleanup_target_of(may_be_left, state.run_since);
            state.set_cleanup_target(Some(target));
        }
        if let StartError::Interrupted = error {
            // Before the cleanup is saved as due: the next runtime resumes only that.
            state.note_no_run();
            return error;
        }
        let error = error.with_output(output.as_deref());
        let outcome = Outcome::of_failed_start(&error, output, record.ok().flatten());
        state.set_exited(None, outcome);
        error
    }

    /// Returns whether the shim of a failed start recorded its own ending, after it had killed the
    /// descendants of its payload.
    fn has_recorded_ending(&self, shim: &ShimHandle, error: &StartError) -> bool {
        let Some(status) = shim.try_wait().ok().flatten().and_then(|exit| exit.status) else {
            return false;
        };
        let is_own = |record: &ExitRecord| {
            record.pid == shim.id()
                && record_matches(record, status)
                && !matches!(record.ending, Ending::Panicked { .. })
        };
        match error {
            StartError::Failed { record, .. } => is_own(record),
            _ => {
                let record = self.dir().exit_record();
                record.ok().flatten().as_ref().is_some_and(is_own)
            }
        }
    }

    /// Returns whether the outcome of this shim is already on disk.
    pub(crate) fn knows_exit_of(&self, shim: &PidRecord) -> bool {
        let state = self.state();
        let last = state.record.last.as_ref();
        last.is_some_and(|last| last.shim.as_ref() == Some(shim))
    }

    /// Marks a run as ended while no runtime was attached. The kernel no longer reports the exit
    /// status, so a cleanup is due whatever the record shows.
    pub(crate) fn mark_exited_offline(&self, outcome: Outcome) {
        let mut state = self.state();
        state.set_cleanup_target(Some(self.cleanup_target_of(None, None)));
        state.note_recovered_run();
        state.set_exited(None, outcome);
        // This runtime never saw it running, so no change is published.
        state.finish_run();
    }

    /// Resumes a cleanup that an earlier runtime did not finish. Returns whether one is due.
    pub(crate) fn resume_cleanup(&self) -> bool {
        let mut state = self.state();
        if state.record.cleanup_due {
            state.cleanup_target = Some(self.cleanup_target_of(None, None));
        }
        state.record.cleanup_due
    }

    /// Returns whether the shim has exited and the exit is not reported yet.
    pub(crate) fn has_unreported_exit(&self) -> bool {
        self.state().has_unreported_exit()
    }

    /// Waits until no exit is left to report.
    pub(crate) async fn end_reported(&self) {
        loop {
            let reported = self.end_reported.notified();
            if !self.has_unreported_exit() {
                return;
            }
            reported.await;
        }
    }

    /// Saves the exit of the shim, if it has exited and the exit is not reported yet. Then reports
    /// it, unless a cleanup is due: the end of a box means that nothing of its run is left. If the
    /// disk refuses, reports it unsaved. Blocks on the disk.
    ///
    /// Fails if the exit record cannot be read because descriptors or memory are exhausted. The
    /// exit is then not reported, and the caller retries.
    pub(crate) fn observe_exit(&self) -> Result<(), FileError> {
        self.note_exit()?;
        if matches!(self.state().phase, Phase::Exited { .. })
            && let Err(error) = self.save()
        {
            tracing::warn!(id = self.id().as_str(), error = %with_causes(&error), "cannot save how the box ended");
        }
        if self.cleanup_target().is_none() {
            self.report_exit();
        }
        Ok(())
    }

    /// Moves from `Running` to `Exited` if the shim has exited. Holds no lock while it blocks on the
    /// disk: a disk that hangs must not delay the other boxes.
    fn note_exit(&self) -> Result<(), FileError> {
        let Some(shim) = self.shim() else {
            return Ok(());
        };
        let Some(exit) = shim.try_exit() else {
            return Ok(());
        };
        let record = match exit.status {
            // No exit record matches death by signal.
            Some(status) if status.code().is_none() => Ok(None),
            _ => self.dir().exit_record(),
        };
        let may_be_left = self.has_control_group(shim.pid()) || payload_survives(&shim);
        let mut state = self.state();
        let Some(stop_requested) = state.is_stop_requested(&shim) else {
            return Ok(());
        };
        let of_record = |record| {
            let id = shim.record().clone();
            Outcome::of_exit(Some(id), exit.status, record, stop_requested)
        };
        let outcome = match record {
            Err(error) if is_resource_exhaustion(&error.source) => {
                state.set_unread_exit(of_record(Err(&error)));
                return Err(error);
            }
            Err(error) => of_record(Err(&error)),
            Ok(record) => of_record(Ok(record)),
        };
        if outcome.may_leave_orphans || state.record.spec.has_command_probe() || may_be_left {
            let target = self.cleanup_target_of(Some(shim.pid()), state.run_since);
            state.set_cleanup_target(Some(target));
        }
        state.set_exited(Some(shim), outcome);
        Ok(())
    }

    /// Reports the exit of a box in the phase `Exited`. [`observe_exit`](Self::observe_exit) has
    /// saved it, and a cleanup has succeeded or failed.
    pub(crate) fn report_exit(&self) {
        let mut state = self.state();
        let Some(was_running) = state.finish_run() else {
            return;
        };
        if was_running {
            self.events.run_ended();
        }
        let change = match &state.record.last {
            Some(last) if last.status == BoxStatus::Stopped => BoxChange::Stopped,
            _ => BoxChange::Failed,
        };
        self.publish(change, &state);
        self.schedule_follow_up(&state, Duration::ZERO);
        self.end_reported.notify_waiters();
    }

    /// Returns whether the control group of the last run may exist: the shim could not kill
    /// everything in it.
    fn has_control_group(&self, shim: u32) -> bool {
        !matches!(ControlGroup::of_shim(self.dir().path(), shim), Ok(None))
    }

    fn cleanup_target_of(&self, session: Option<u32>, since: Option<u64>) -> CleanupTarget {
        CleanupTarget {
            dir: self.dir().path().to_owned(),
            session,
            since,
        }
    }

    /// Returns what must be cleaned up after the last run.
    pub(crate) fn cleanup_target(&self) -> Option<CleanupTarget> {
        self.state().cleanup_target.clone()
    }

    /// Marks the cleanup of this target as done.
    pub(crate) fn cleanup_done(&self, cleanup_target: &CleanupTarget) {
        let mut state = self.state();
        if state.cleanup_target.as_ref() == Some(cleanup_target) {
            state.set_cleanup_target(None);
        }
    }

    /// Returns whether nothing of the last run is left to report, clean up or save.
    pub(crate) fn is_clean(&self) -> bool {
        self.state().is_clean()
    }

    /// Returns true to one caller at a time, which then retries the cleanup until it calls
    /// [`finish_retries`](Self::finish_retries).
    pub(crate) fn begin_retries(&self) -> bool {
        !std::mem::replace(&mut self.state().is_retrying, true)
    }

    /// Ends the retries.
    pub(crate) fn finish_retries(&self) {
        self.state().is_retrying = false;
    }

    /// Returns whether `box.json` is up to date.
    pub(crate) fn is_saved(&self) -> bool {
        self.state().is_saved()
    }

    /// Writes `box.json` if it is out of date. Blocks on the disk.
    pub(crate) fn save(&self) -> Result<(), FileError> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, version, is_over) = {
            let state = self.state();
            if state.is_saved() || matches!(state.gate, Gate::Removing | Gate::Removed) {
                return Ok(());
            }
            let is_over = matches!(state.phase, Phase::Idle | Phase::Exited { .. });
            (state.to_record(), state.version, is_over)
        };
        if let Err(error) = record.write(self.dir()) {
            // Without the save, a power cut could lose the end.
            if is_over && let Err(error) = self.dir().sync_exit_record() {
                tracing::warn!(id = self.id().as_str(), error = %with_causes(&error), "cannot sync how the box ended");
            }
            return Err(error);
        }
        // The next runtime compares this pid with `last` to see that the outcome is that of the
        // last run. A payload may have changed the file.
        if let Some(shim) = record.last.and_then(|last| last.shim)
            && is_over
        {
            match self.dir().shim_record() {
                Ok(Some(published)) if published == shim => {}
                _ => self.dir().write_shim_record(&shim)?,
            }
        }
        self.state().saved_version = version;
        Ok(())
    }
}
