use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use shim_reaper::ShimHandle;
use tokio_util::sync::CancellationToken;
use vmm_protocol::{
    ControlGroup, Ending, ExitRecord, FILES, FileError, PidRecord, is_resource_exhaustion,
};

use super::gate::Gate;
use super::phase::Phase;
use super::state::State;
use super::{
    BoxInfo, BoxRecord, BoxStatus, Outcome, ShutdownTarget, StartDecision, record_matches,
};
use crate::event::EventBus;
use crate::process::{CleanupTarget, procfs};
use crate::{BoxChange, HealthState, RuntimeError, ShimHandler, StartError};

/// A box: its spec, its current state, and the outcome of its last run.
#[derive(Debug)]
pub(crate) struct MicroBox {
    id: String,
    dir: PathBuf,
    events: Arc<EventBus>,
    /// Held by the operation that starts, stops or cleans up the box. Taken after `removal`.
    pub(crate) operation_lock: tokio::sync::Mutex<()>,
    /// Held by a removal. Never taken while holding `operation_lock`: a removal with force begins
    /// while another operation holds that.
    pub(crate) removal: tokio::sync::Mutex<()>,
    /// The number of stop requests. A start that was requested before the latest one is cancelled.
    stop_epoch: AtomicU64,
    state: Mutex<State>,
    /// Held while `box.json` is written.
    saving: Mutex<()>,
    /// The version of the record on disk.
    saved: AtomicU64,
    /// Whether a background task retries the cleanup.
    retrying: AtomicBool,
}

/// Returns whether the payload is still alive in the session of its dead shim, which could not wait
/// for it.
fn payload_survives(shim: &ShimHandler) -> bool {
    let session = |pid| procfs::session_of(pid).ok().flatten();
    shim.payload_pid().and_then(session) == Some(shim.pid())
}

impl MicroBox {
    /// Creates a box in the phase `Idle` from its record. `damage` is why `box.json` could not be
    /// read.
    pub(crate) fn new(
        record: BoxRecord,
        damage: Option<FileError>,
        dir: PathBuf,
        events: Arc<EventBus>,
    ) -> Self {
        let updated_at = record
            .last
            .as_ref()
            .map_or(record.created_at, |last| last.at);
        Self {
            id: record.id.clone(),
            dir,
            events,
            operation_lock: tokio::sync::Mutex::new(()),
            removal: tokio::sync::Mutex::new(()),
            stop_epoch: AtomicU64::new(0),
            state: Mutex::new(State {
                health: record.health_after_exit(),
                record,
                version: 0,
                damage: damage.map(Arc::new),
                phase: Phase::Idle,
                gate: Gate::Open,
                started_at: None,
                updated_at,
                cleanup_target: None,
            }),
            saving: Mutex::new(()),
            saved: AtomicU64::new(0),
            retrying: AtomicBool::new(false),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_found(&self) -> RuntimeError {
        RuntimeError::NotFound {
            wanted: self.id.clone(),
        }
    }

    /// Returns the info of the box. An exit shows once [`observe_exit`](Self::observe_exit) has
    /// reported it. If the exit record cannot be read because descriptors or memory are exhausted,
    /// the info shows what the kernel reports.
    pub(crate) fn info(&self) -> BoxInfo {
        let observed = self.note_exit();
        let state = self.state();
        match (observed, &state.phase) {
            (
                Err(short),
                Phase::Running {
                    shim,
                    stop_requested,
                    ..
                },
            ) => {
                let status = shim.try_exit().and_then(|exit| exit.status);
                let shim = Some(shim.record().clone());
                state.info_with_outcome(&Outcome::of_exit(
                    shim,
                    status,
                    Err(short),
                    *stop_requested,
                ))
            }
            _ => state.info(),
        }
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.state().record.spec.name.clone()
    }

    pub(crate) fn stop_grace(&self) -> Duration {
        self.state().record.spec.stop_grace
    }

    pub(crate) fn health_check(&self) -> Option<crate::HealthCheckOptions> {
        self.state().record.spec.health.clone()
    }

    /// Publishes the creation of the box.
    pub(crate) fn publish_created(&self) {
        self.events.publish(BoxChange::Created, self.state().info());
    }

    /// Returns the number of stop requests. The caller reads it when a start is requested and
    /// passes it to [`begin_start`](Self::begin_start).
    pub(crate) fn stop_epoch(&self) -> u64 {
        self.stop_epoch.load(Ordering::Relaxed)
    }

    /// Fails unless operations may begin.
    fn check_gate(&self, state: &State) -> Result<(), RuntimeError> {
        match state.gate {
            Gate::Open => Ok(()),
            Gate::Removing | Gate::Removed => Err(self.not_found()),
            Gate::Closed => Err(RuntimeError::Closed),
        }
    }

    /// Decides what a start must do. `stop_epoch` is the number of stop requests when the start was
    /// requested.
    pub(crate) fn begin_start(
        &self,
        stop_epoch: u64,
        closing: &CancellationToken,
    ) -> Result<StartDecision, RuntimeError> {
        let mut state = self.state();
        self.check_gate(&state)?;
        if stop_epoch != self.stop_epoch() {
            return Ok(StartDecision::Cancelled);
        }
        match &state.phase {
            Phase::Running {
                shim,
                watchdog_lost,
                ..
            } if *watchdog_lost || shim.try_exit().is_some() => {
                return Ok(StartDecision::AwaitExit(Arc::clone(shim)));
            }
            Phase::Running { .. } => return Ok(StartDecision::Running),
            Phase::Exited { .. } => return Ok(StartDecision::NeedsCleanup),
            _ => {}
        }
        // A search could not distinguish the orphans from the processes of a new run.
        if state.cleanup_target.is_some() {
            return Ok(StartDecision::NeedsCleanup);
        }
        if let Some(damage) = &state.damage {
            return Err(RuntimeError::Damaged {
                id: self.id.clone(),
                source: Arc::clone(damage),
            });
        }
        let interrupt = closing.child_token();
        state.phase = Phase::Starting {
            interrupt: interrupt.clone(),
            shim: None,
        };
        Ok(StartDecision::Launch {
            spec: Box::new(state.record.instance_spec()),
            interrupt,
        })
    }

    /// Stores the shim of the start in progress.
    pub(crate) fn set_spawned(&self, started: &ShimHandle) {
        if let Phase::Starting { shim, .. } = &mut self.state().phase {
            *shim = Some(started.clone());
        }
    }

    /// Marks the box as running. Returns the shim if the box must not run any more.
    pub(crate) fn mark_started(&self, shim: ShimHandler) -> Result<Arc<ShimHandler>, ShimHandler> {
        let mut state = self.state();
        if state.gate != Gate::Open {
            return Err(shim);
        }
        let shim = state.set_running(shim, false);
        state.started_at = Some(Timestamp::now());
        self.events.publish(BoxChange::Started, state.info());
        Ok(shim)
    }

    /// Marks the box as running with the shim of an earlier runtime.
    pub(crate) fn mark_recovered(&self, shim: ShimHandler) -> Arc<ShimHandler> {
        let mut state = self.state();
        self.events.run_recovered();
        let watchdog_lost = !state.is_detached();
        state.set_running(shim, watchdog_lost)
    }

    /// Marks the start as failed. An interrupted start leaves the box as it was.
    pub(crate) fn mark_start_failed(&self, error: &StartError) {
        // The next runtime needs to know which shim failed.
        let record = PidRecord::read(&self.dir.join(FILES.shim_pid));
        let mut state = self.state();
        let shim = match &state.phase {
            Phase::Starting { shim, .. } => shim.clone(),
            _ => None,
        };
        // Without a shim nothing can be left.
        if let Some(shim) = shim
            && (!self.has_recorded_ending(&shim, error) || self.has_control_group(shim.pid()))
        {
            state.set_cleanup_target(Some(self.cleanup_target_of(Some(shim.pid()))));
        }
        match error {
            StartError::Interrupted => state.phase = Phase::Idle,
            _ => state.set_exited(None, Outcome::of_failed_start(error, record.ok().flatten())),
        }
    }

    /// Returns whether the shim of a failed start recorded its own ending, after it had killed the
    /// descendants of its payload.
    fn has_recorded_ending(&self, shim: &ShimHandle, error: &StartError) -> bool {
        let Some(status) = shim.try_exit().and_then(|exit| exit.status) else {
            return false;
        };
        let is_own = |record: &ExitRecord| {
            record.pid == shim.pid()
                && record_matches(record, status)
                && !matches!(record.ending, Ending::Panicked { .. })
        };
        match error {
            StartError::Failed { record } => is_own(record),
            _ => {
                let record = ExitRecord::read(&self.dir.join(FILES.exit));
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
        state.set_cleanup_target(Some(self.cleanup_target_of(None)));
        state.set_exited(None, outcome);
        // This runtime never saw it running, so no change is published.
        state.finish_run();
    }

    /// Resumes a cleanup that an earlier runtime did not finish. Returns whether one is due.
    pub(crate) fn resume_cleanup(&self) -> bool {
        let mut state = self.state();
        if state.record.cleanup_due {
            state.cleanup_target = Some(self.cleanup_target_of(None));
        }
        state.record.cleanup_due
    }

    /// Returns whether the shim has exited and the exit is not reported yet.
    pub(crate) fn has_unreported_exit(&self) -> bool {
        match &self.state().phase {
            Phase::Running { shim, .. } => shim.try_exit().is_some(),
            Phase::Exited { .. } => true,
            _ => false,
        }
    }

    /// Saves and then reports the exit of the shim, if it has exited and the exit is not reported
    /// yet. If the disk refuses, reports it unsaved. Blocks on the disk.
    ///
    /// Fails if the exit record cannot be read because descriptors or memory are exhausted. The
    /// exit is then not reported, and the caller retries.
    pub(crate) fn observe_exit(&self) -> Result<(), FileError> {
        self.note_exit()?;
        if matches!(self.state().phase, Phase::Exited { .. })
            && let Err(error) = self.save()
        {
            tracing::warn!(id = self.id, %error, "cannot save how the box ended");
        }
        self.report_exit();
        Ok(())
    }

    /// Moves from `Running` to `Exited` if the shim has exited.
    fn note_exit(&self) -> Result<(), FileError> {
        let mut state = self.state();
        let Phase::Running {
            shim,
            stop_requested,
            ..
        } = &state.phase
        else {
            return Ok(());
        };
        let Some(exit) = shim.try_exit() else {
            return Ok(());
        };
        let record = match exit.status {
            // No exit record matches death by signal.
            Some(status) if status.code().is_none() => Ok(None),
            _ => match ExitRecord::read(&self.dir.join(FILES.exit)) {
                Err(error) if is_resource_exhaustion(&error.source) => return Err(error),
                record => record,
            },
        };
        let shim = Arc::clone(shim);
        let outcome = Outcome::of_exit(
            Some(shim.record().clone()),
            exit.status,
            record,
            *stop_requested,
        );
        if outcome.may_leave_orphans
            || state.has_command_probe()
            || self.has_control_group(shim.pid())
            || payload_survives(&shim)
        {
            state.set_cleanup_target(Some(self.cleanup_target_of(Some(shim.pid()))));
        }
        state.set_exited(Some(shim), outcome);
        Ok(())
    }

    /// Reports the exit of a box in the phase `Exited`. [`observe_exit`](Self::observe_exit) saves
    /// it first.
    pub(crate) fn report_exit(&self) {
        let mut state = self.state();
        let Some(was_running) = state.finish_run() else {
            return;
        };
        if was_running {
            self.events.run_ended();
        }
        let info = state.info();
        let change = match info.status {
            BoxStatus::Stopped => BoxChange::Stopped,
            _ => BoxChange::Failed,
        };
        self.events.publish(change, info);
    }

    /// Returns whether the control group of the last run may exist: the shim could not kill
    /// everything in it.
    fn has_control_group(&self, shim: u32) -> bool {
        !matches!(ControlGroup::of_shim(&self.dir, shim), Ok(None))
    }

    fn cleanup_target_of(&self, session: Option<u32>) -> CleanupTarget {
        CleanupTarget {
            dir: self.dir.clone(),
            session,
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

    /// Sets the health state if `of` is still the current shim.
    pub(crate) fn set_health(&self, of: &Arc<ShimHandler>, health: HealthState) {
        let mut state = self.state();
        let current = matches!(&state.phase, Phase::Running { shim, .. } if Arc::ptr_eq(shim, of));
        if current && state.health != Some(health) {
            state.health = Some(health);
            self.events.publish(BoxChange::Health, state.info());
        }
    }

    /// Cancels the start in progress and those that wait for the operation lock.
    pub(crate) fn cancel_starts(&self) {
        self.stop_epoch.fetch_add(1, Ordering::Relaxed);
        if let Phase::Starting { interrupt, .. } = &self.state().phase {
            interrupt.cancel();
        }
    }

    /// Returns the shim in the phase `Running`.
    pub(crate) fn shim(&self) -> Option<Arc<ShimHandler>> {
        match &self.state().phase {
            Phase::Running { shim, .. } => Some(Arc::clone(shim)),
            _ => None,
        }
    }

    /// Marks the exit of the running shim as requested and returns the shim, if there is one.
    pub(crate) fn request_stop(&self) -> Result<Option<Arc<ShimHandler>>, RuntimeError> {
        // An exit before this request was not requested. A failure to read it is retried later.
        let _ = self.note_exit();
        let mut state = self.state();
        if state.gate == Gate::Removed {
            return Err(self.not_found());
        }
        Ok(state.request_stop())
    }

    /// Lets no other operation begin. Returns the shim that the removal must kill, if there is one.
    pub(crate) fn begin_removal(
        &self,
        force: bool,
    ) -> Result<Option<Arc<ShimHandler>>, RuntimeError> {
        let _ = self.note_exit();
        let mut state = self.state();
        self.check_gate(&state)?;
        if !force && state.is_busy() {
            return Err(RuntimeError::Running {
                id: self.id.clone(),
            });
        }
        state.gate = Gate::Removing;
        if let Phase::Starting { interrupt, .. } = &state.phase {
            interrupt.cancel();
        }
        Ok(state.request_stop())
    }

    /// Lets operations begin again after a failed removal.
    pub(crate) fn cancel_removal(&self) {
        let mut state = self.state();
        if state.gate == Gate::Removing {
            state.gate = Gate::Open;
        }
    }

    /// Marks the box as removed and publishes that.
    pub(crate) fn mark_removed(&self) {
        self.state().gate = Gate::Removed;
        self.events.publish(BoxChange::Removed, self.state().info());
    }

    /// Lets no other operation begin because the runtime shuts down. Returns the shim that must end
    /// with it, if there is one.
    pub(crate) fn begin_shutdown(&self) -> Option<ShutdownTarget> {
        let _ = self.note_exit();
        let mut state = self.state();
        state.close_gate();
        let grace = state.record.spec.stop_grace;
        let detached = state.is_detached();
        match &mut state.phase {
            Phase::Starting { interrupt, shim } => {
                interrupt.cancel();
                shim.clone().map(|shim| ShutdownTarget {
                    shim,
                    grace: Duration::ZERO,
                })
            }
            Phase::Running {
                shim,
                stop_requested,
                ..
            } if !detached => {
                *stop_requested = true;
                Some(ShutdownTarget {
                    shim: shim.handle().clone(),
                    grace,
                })
            }
            _ => None,
        }
    }

    /// Closes the box of a dropped runtime: releases the watchdog, so that an attached shim ends.
    pub(crate) fn release_watchdog(&self) {
        let mut state = self.state();
        state.close_gate();
        match &state.phase {
            Phase::Idle | Phase::Exited { .. } => {}
            Phase::Starting { interrupt, shim } => {
                interrupt.cancel();
                // No task may be left that could kill it.
                if let Some(shim) = shim {
                    let _ = shim.signal(vmm_protocol::KILL_SIGNAL);
                }
            }
            Phase::Running { shim, .. } => shim.release_watchdog(),
        }
    }

    /// Returns whether nothing of the last run is left to report, clean up or save.
    pub(crate) fn is_clean(&self) -> bool {
        let state = self.state();
        let is_saved =
            state.version == self.saved.load(Ordering::Acquire) || state.damage.is_some();
        state.gate == Gate::Removed
            || state.cleanup_target.is_none()
                && is_saved
                && !matches!(state.phase, Phase::Exited { .. })
    }

    /// Returns true to one caller at a time, which then retries the cleanup until it calls
    /// [`finish_retries`](Self::finish_retries).
    pub(crate) fn begin_retries(&self) -> bool {
        !self.retrying.swap(true, Ordering::AcqRel)
    }

    /// Ends the retries.
    pub(crate) fn finish_retries(&self) {
        self.retrying.store(false, Ordering::Release);
    }

    /// Writes `box.json` if it is out of date. Blocks on the disk.
    pub(crate) fn save(&self) -> Result<(), FileError> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, version, is_over) = {
            let state = self.state();
            let current =
                state.version == self.saved.load(Ordering::Acquire) || state.damage.is_some();
            if current || matches!(state.gate, Gate::Removing | Gate::Removed) {
                return Ok(());
            }
            let is_over = matches!(state.phase, Phase::Idle | Phase::Exited { .. });
            (state.to_record(), state.version, is_over)
        };
        record.write(&self.dir.join(FILES.spec))?;
        // The next runtime compares this pid with `last` to see that the outcome is that of the
        // last run. A payload may have changed the file.
        if let Some(shim) = record.last.and_then(|last| last.shim)
            && is_over
        {
            let path = self.dir.join(FILES.shim_pid);
            match PidRecord::read(&path) {
                Ok(Some(published)) if published == shim => {}
                _ => shim.write(&path)?,
            }
        }
        self.saved.store(version, Ordering::Release);
        Ok(())
    }
}
