//! A box and the operations on its state. What concerns the end of a run is in `exit.rs`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use shim_reaper::ShimHandle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmm_protocol::{BoxDir, FileError, PayloadSpec};

use super::gate::Gate;
use super::state::{Phase, State};
use super::{BoxCounts, BoxId, BoxInfo, BoxRecord, ShutdownTarget, StartDecision, StartRequest};
use crate::event::EventBus;
use crate::metrics::ExecutionCounters;
use crate::restart::DueBoxes;
use crate::{BoxChange, HealthCheckOptions, HealthState, Removal, RuntimeError, ShimHandler};

/// A box: its spec, its current state, and the outcome of its last run.
#[derive(Debug)]
pub(crate) struct MicroBox {
    id: BoxId,
    dir: BoxDir,
    pub(super) events: Arc<EventBus>,
    executions: Arc<ExecutionCounters>,
    pub(super) due: Arc<DueBoxes>,
    /// Held by the operation that starts, stops or cleans up the box. Taken after `removal_lock`.
    pub(crate) operation_lock: tokio::sync::Mutex<()>,
    /// Held by a removal. Never taken while holding `operation_lock`: a removal with force begins
    /// while another operation holds that.
    pub(crate) removal_lock: tokio::sync::Mutex<()>,
    /// The number of stop requests. A start that was requested before the latest one is cancelled.
    stop_epoch: AtomicU64,
    state: Mutex<State>,
    /// Notified when an end is reported.
    pub(super) end_reported: Notify,
    /// Held while `box.json` is written. Taken before `state`.
    pub(super) saving: Mutex<()>,
    /// The tasks that read the output for clients. An automatic removal waits for them.
    pub(crate) console_readers: TaskTracker,
}

impl MicroBox {
    /// Creates a box in the phase `Idle` from its record. `damage` is why `box.json` could not be
    /// read.
    pub(crate) fn new(
        record: BoxRecord,
        damage: Option<FileError>,
        dir: BoxDir,
        events: Arc<EventBus>,
        due: Arc<DueBoxes>,
    ) -> Self {
        let console_readers = TaskTracker::new();
        // So that a wait ends when there are none at that moment.
        console_readers.close();
        Self {
            id: record.id.clone(),
            dir,
            executions: events.execution_counters(),
            events,
            due,
            operation_lock: tokio::sync::Mutex::new(()),
            removal_lock: tokio::sync::Mutex::new(()),
            stop_epoch: AtomicU64::new(0),
            state: Mutex::new(State::new(record, damage)),
            end_reported: Notify::new(),
            saving: Mutex::new(()),
            console_readers,
        }
    }

    pub(crate) fn id(&self) -> &BoxId {
        &self.id
    }

    pub(crate) fn dir(&self) -> &BoxDir {
        &self.dir
    }

    /// Returns the counters of the commands that run in the box.
    pub(crate) fn executions(&self) -> &Arc<ExecutionCounters> {
        &self.executions
    }

    /// Locks the state.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the info of the box. An exit shows once [`observe_exit`](Self::observe_exit) has
    /// reported it.
    pub(crate) fn info(&self) -> BoxInfo {
        self.info_of(&self.state())
    }

    /// Adds the box to the counts.
    pub(crate) fn count(&self, counts: &mut BoxCounts) {
        self.state().count(counts);
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.state().record.spec.name.clone()
    }

    pub(crate) fn payload(&self) -> PayloadSpec {
        self.state().record.spec.payload.clone()
    }

    /// Returns the user of the box in its record.
    pub(crate) fn uid(&self) -> Option<u32> {
        self.state().record.uid
    }

    /// Sets the user of the box to what `choose` returns for its payload and its user in the record.
    pub(crate) fn set_uid(
        &self,
        choose: impl FnOnce(&PayloadSpec, Option<u32>) -> Result<Option<u32>, RuntimeError>,
    ) -> Result<(), RuntimeError> {
        let mut state = self.state();
        let uid = choose(&state.record.spec.payload, state.record.uid)?;
        state.set_uid(uid);
        Ok(())
    }

    pub(crate) fn cpus(&self) -> Option<u32> {
        self.state().record.spec.payload.cpus
    }

    pub(crate) fn stop_grace(&self) -> Duration {
        self.state().record.spec.stop_grace
    }

    pub(crate) fn health_check(&self) -> Option<HealthCheckOptions> {
        self.state().record.spec.health.clone()
    }

    fn info_of(&self, state: &State) -> BoxInfo {
        state.info(self.dir.path())
    }

    /// Publishes a change, which the state already shows.
    pub(super) fn publish(&self, change: BoxChange, state: &State) {
        self.events.publish(change, self.info_of(state));
    }

    /// Publishes the creation of the box.
    pub(crate) fn publish_created(&self) {
        self.publish(BoxChange::Created, &self.state());
    }

    /// Returns the number of stop requests. The caller reads it when a start is requested and
    /// passes it to [`begin_start`](Self::begin_start).
    pub(crate) fn stop_epoch(&self) -> u64 {
        self.stop_epoch.load(Ordering::Relaxed)
    }

    /// Decides what a start must do.
    pub(crate) fn begin_start(
        &self,
        request: StartRequest,
        closing: &CancellationToken,
    ) -> Result<StartDecision, RuntimeError> {
        let mut state = self.state();
        state.check_gate()?;
        let is_due = !request.is_restart || state.record.restart.due;
        if !is_due || request.stop_epoch != self.stop_epoch() {
            return Ok(StartDecision::Cancelled);
        }
        let decision = state.begin_start(closing)?;
        if let StartDecision::Launch { .. } = decision {
            state.note_launch(request);
            if request.is_restart {
                self.events.restarted();
            }
        }
        Ok(decision)
    }

    /// Stores the shim of the start in progress, before it runs the payload, and the size of the
    /// console before its run, and publishes that.
    pub(crate) fn set_spawned(&self, shim: &ShimHandle, console_size: u64) {
        let mut state = self.state();
        state.set_spawned(shim, console_size);
        self.publish(BoxChange::Starting, &state);
    }

    /// Returns to the state before an interrupted start, of which nothing is left.
    pub(crate) fn cancel_start(&self, request: StartRequest) {
        let mut state = self.state();
        let was_published = state.starting_shim().is_some();
        // After a shutdown it is still due.
        let ends_restarts = request.is_restart && !state.record.restart.due;
        state.cancel_start();
        if was_published || ends_restarts {
            self.publish(BoxChange::Cancelled, &state);
        }
    }

    /// Waits while a start is in progress.
    pub(crate) async fn start_finished(&self) {
        let is_starting = matches!(self.state().phase, Phase::Starting { .. });
        if is_starting {
            drop(self.operation_lock.lock().await);
        }
    }

    /// Marks the box as running. Returns false if the box must not run any more.
    pub(crate) fn mark_started(&self, shim: &Arc<ShimHandler>) -> bool {
        let mut state = self.state();
        if state.gate != Gate::Open {
            return false;
        }
        state.set_running(Arc::clone(shim), false);
        state.started_at = Some(Timestamp::now());
        self.publish(BoxChange::Started, &state);
        true
    }

    /// Marks the box as running with the shim of an earlier runtime. `since` is when the shim
    /// started, if [`CleanupTarget::since`](crate::process::CleanupTarget::since) applies.
    pub(crate) fn mark_recovered(&self, shim: ShimHandler, since: Option<u64>) -> Arc<ShimHandler> {
        let mut state = self.state();
        state.run_since = since;
        state.note_recovered_run();
        self.events.run_recovered();
        let watchdog_lost = !state.is_detached();
        let shim = Arc::new(shim);
        state.set_running(Arc::clone(&shim), watchdog_lost);
        shim
    }

    /// Stores whether the payload of this shim is frozen, and publishes a change.
    pub(crate) fn set_paused(&self, of: &Arc<ShimHandler>, paused: bool) {
        let mut state = self.state();
        if state.set_paused(of, paused) {
            let change = if paused {
                BoxChange::Paused
            } else {
                BoxChange::Resumed
            };
            self.publish(change, &state);
        }
    }

    /// Stores that the payload of a shim of an earlier runtime is frozen.
    pub(crate) fn mark_recovered_paused(&self, of: &Arc<ShimHandler>) {
        self.state().set_paused(of, true);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state().is_paused()
    }

    /// Sets the health state if `of` is still the current shim.
    pub(crate) fn set_health(&self, of: &Arc<ShimHandler>, health: HealthState) {
        let mut state = self.state();
        let current = matches!(&state.phase, Phase::Running { shim, .. } if Arc::ptr_eq(shim, of));
        // A probe of a frozen payload fails.
        if current && !state.is_paused() && state.health != Some(health) {
            state.health = Some(health);
            self.publish(BoxChange::Health, &state);
        }
    }

    /// Cancels the start in progress, those that wait for the operation lock, and the restarts.
    pub(crate) fn cancel_starts(&self) {
        self.stop_epoch.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let awaited_restart = state.awaits_restart();
        state.note_stop();
        state.interrupt_start();
        if awaited_restart {
            self.publish(BoxChange::Cancelled, &state);
        }
    }

    /// Returns the shim in the phase `Running`.
    pub(crate) fn shim(&self) -> Option<Arc<ShimHandler>> {
        match &self.state().phase {
            Phase::Running { shim, .. } => Some(Arc::clone(shim)),
            _ => None,
        }
    }

    /// Returns the shim of a box whose payload is ready.
    pub(crate) fn ready_shim(&self) -> Result<Arc<ShimHandler>, RuntimeError> {
        let id = self.id().clone();
        match &self.state().phase {
            Phase::Running { shim, .. } => Ok(Arc::clone(shim)),
            Phase::Starting { .. } => Err(RuntimeError::Starting { id }),
            Phase::Idle | Phase::Exited { .. } => Err(RuntimeError::NotRunning { id }),
        }
    }

    /// Marks the exit of the running shim as requested and returns the shim, if there is one.
    pub(crate) fn request_stop(&self) -> Result<Option<Arc<ShimHandler>>, RuntimeError> {
        let mut state = self.state();
        if state.gate == Gate::Removed {
            return Err(state.not_found());
        }
        Ok(state.request_stop())
    }

    /// Lets no other operation begin. Returns the shim that the removal must kill, if there is one.
    pub(crate) fn begin_removal(
        &self,
        removal: Removal,
    ) -> Result<Option<Arc<ShimHandler>>, RuntimeError> {
        let mut state = self.state();
        let awaited_restart = state.awaits_restart();
        let shim = state.begin_removal(removal)?;
        if awaited_restart {
            self.publish(BoxChange::Cancelled, &state);
        }
        Ok(shim)
    }

    /// Lets operations begin again after a failed removal.
    pub(crate) fn cancel_removal(&self) {
        self.state().cancel_removal();
    }

    /// Marks the box as removed and publishes that.
    pub(crate) fn mark_removed(&self) {
        let mut state = self.state();
        state.mark_removed();
        self.publish(BoxChange::Removed, &state);
    }

    /// Lets no other operation begin because the runtime shuts down. Returns the shim that must end
    /// with it, if there is one.
    pub(crate) fn begin_shutdown(&self) -> Option<ShutdownTarget> {
        self.state().begin_shutdown()
    }

    /// Closes the box of a dropped runtime: releases the watchdog, so that an attached shim ends.
    pub(crate) fn release_watchdog(&self) {
        self.state().release_watchdog();
    }
}
