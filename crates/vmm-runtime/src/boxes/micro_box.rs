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
use super::{Beginning, BoxInfo, BoxRecord, BoxStatus, Closing, Outcome, record_fits};
use crate::event::Herald;
use crate::process::{Litter, procfs};
use crate::{BoxChange, HealthState, RuntimeError, ShimHandler, StartError};

/// One box: what it is to be, what it does now, and how it last ended.
#[derive(Debug)]
pub(crate) struct MicroBox {
    id: String,
    dir: PathBuf,
    herald: Arc<Herald>,
    /// Held by whoever starts, stops or clears away the box, one after the other.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Held by whoever removes the box, and by nobody who holds the turn: a removal by force begins
    /// while somebody else has that.
    pub(crate) removal: tokio::sync::Mutex<()>,
    /// How often it has been asked to stop: starts that were asked for before are given up.
    stops: AtomicU64,
    state: Mutex<State>,
    /// Held while `box.json` is written.
    saving: Mutex<()>,
    /// The version of the record that the disk has.
    saved: AtomicU64,
    /// Whether a task goes on tidying.
    retrying: AtomicBool,
}

/// Whether the payload outlives its shim, which could not wait until it had died.
fn has_payload(shim: &ShimHandler) -> bool {
    let session = |pid| procfs::session_of(pid).ok().flatten();
    shim.payload_pid().and_then(session) == Some(shim.pid())
}

impl MicroBox {
    pub(crate) fn new(
        record: BoxRecord,
        damage: Option<FileError>,
        dir: PathBuf,
        herald: Arc<Herald>,
    ) -> Self {
        let updated_at = record
            .last
            .as_ref()
            .map_or(record.created_at, |last| last.at);
        Self {
            id: record.id.clone(),
            dir,
            herald,
            turn: tokio::sync::Mutex::new(()),
            removal: tokio::sync::Mutex::new(()),
            stops: AtomicU64::new(0),
            state: Mutex::new(State {
                health: record.health_when_down(),
                record,
                version: 0,
                damage: damage.map(Arc::new),
                phase: Phase::Down,
                gate: Gate::Open,
                started_at: None,
                updated_at,
                litter: None,
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

    /// Returns what is reported of it. An end is that once it is [settled](Self::settle). One whose
    /// record cannot be read, for want of descriptors or memory, is shown as the kernel reports it.
    pub(crate) fn info(&self) -> BoxInfo {
        let observed = self.observe_end();
        let state = self.state();
        match (observed, &state.phase) {
            (
                Err(short),
                Phase::Up {
                    shim,
                    stop_requested,
                    ..
                },
            ) => {
                let status = shim.try_exit().and_then(|exit| exit.status);
                let shim = Some(shim.record().clone());
                state.info_after(&Outcome::of(shim, status, Err(short), *stop_requested))
            }
            _ => state.info(),
        }
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.state().record.spec.name.clone()
    }

    pub(crate) fn grace(&self) -> Duration {
        self.state().record.spec.stop_grace
    }

    pub(crate) fn health_check(&self) -> Option<crate::HealthCheckOptions> {
        self.state().record.spec.health.clone()
    }

    pub(crate) fn tell_created(&self) {
        self.herald.tell(BoxChange::Created, self.state().info());
    }

    /// To be taken when a start is asked for, and given to it when its turn has come.
    pub(crate) fn stops(&self) -> u64 {
        self.stops.load(Ordering::Relaxed)
    }

    fn check_gate(&self, state: &State) -> Result<(), RuntimeError> {
        match state.gate {
            Gate::Open => Ok(()),
            Gate::Removing | Gate::Removed => Err(self.not_found()),
            Gate::Closed => Err(RuntimeError::Closed),
        }
    }

    pub(crate) fn begin_start(
        &self,
        stops: u64,
        closing: &CancellationToken,
    ) -> Result<Beginning, RuntimeError> {
        let mut state = self.state();
        self.check_gate(&state)?;
        if stops != self.stops() {
            return Ok(Beginning::GivenUp);
        }
        match &state.phase {
            Phase::Up { shim, ending, .. } if *ending || shim.try_exit().is_some() => {
                return Ok(Beginning::After(Arc::clone(shim)));
            }
            Phase::Up { .. } => return Ok(Beginning::Running),
            Phase::Ended { .. } => return Ok(Beginning::Untidy),
            _ => {}
        }
        // Afterwards it could not be told from what the new run makes.
        if state.litter.is_some() {
            return Ok(Beginning::Untidy);
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
        Ok(Beginning::Begun {
            spec: Box::new(state.record.instance()),
            interrupt,
        })
    }

    /// The start has come as far as having a shim.
    pub(crate) fn spawned(&self, started: &ShimHandle) {
        if let Phase::Starting { shim, .. } = &mut self.state().phase {
            *shim = Some(started.clone());
        }
    }

    /// The payload runs. Gives the shim back if meanwhile it must not.
    pub(crate) fn started(&self, shim: ShimHandler) -> Result<Arc<ShimHandler>, ShimHandler> {
        let mut state = self.state();
        if state.gate != Gate::Open {
            return Err(shim);
        }
        let shim = state.run(shim, false);
        state.started_at = Some(Timestamp::now());
        self.herald.tell(BoxChange::Started, state.info());
        Ok(shim)
    }

    /// It has been running since before the runtime was opened.
    pub(crate) fn recovered(&self, shim: ShimHandler) -> Arc<ShimHandler> {
        let mut state = self.state();
        self.herald.recovered();
        let ending = !state.is_detached();
        state.run(shim, ending)
    }

    /// One that was interrupted leaves the box as it was.
    pub(crate) fn start_failed(&self, error: &StartError) {
        // Whose failure it was, for the next opening.
        let record = PidRecord::read(&self.dir.join(FILES.shim_pid));
        let mut state = self.state();
        let shim = match &state.phase {
            Phase::Starting { shim, .. } => shim.clone(),
            _ => None,
        };
        // Without a shim there is nothing that could be left.
        if let Some(shim) = shim
            && (!self.has_recorded_end(&shim, error) || self.has_group(shim.pid()))
        {
            state.set_litter(Some(self.litter_of(Some(shim.pid()))));
        }
        match error {
            StartError::Interrupted => state.phase = Phase::Down,
            _ => state.note_end(None, Outcome::of_start(error, record.ok().flatten())),
        }
    }

    /// Whether a shim whose start failed has ended by itself, after it had seen to what its payload
    /// had started.
    fn has_recorded_end(&self, shim: &ShimHandle, error: &StartError) -> bool {
        let Some(status) = shim.try_exit().and_then(|exit| exit.status) else {
            return false;
        };
        let is_of_it = |record: &ExitRecord| {
            record.pid == shim.pid()
                && record_fits(record, status)
                && !matches!(record.ending, Ending::Panicked { .. })
        };
        match error {
            StartError::Failed { record } => is_of_it(record),
            _ => {
                let record = ExitRecord::read(&self.dir.join(FILES.exit));
                record.ok().flatten().as_ref().is_some_and(is_of_it)
            }
        }
    }

    /// Whether the record already says how this shim ended.
    pub(crate) fn knows_end_of(&self, shim: &PidRecord) -> bool {
        let state = self.state();
        let last = state.record.last.as_ref();
        last.is_some_and(|last| last.shim.as_ref() == Some(shim))
    }

    /// It was found ended when the runtime was opened. The kernel cannot tell how any more, so that
    /// what its payload has started is searched for whatever the record says.
    pub(crate) fn found_ended(&self, outcome: Outcome) {
        let mut state = self.state();
        state.set_litter(Some(self.litter_of(None)));
        state.note_end(None, outcome);
        // It was not running, as far as this runtime knows: there is nothing to announce.
        state.report();
    }

    /// Takes up a cleanup that an earlier runtime has not finished. False if there is none.
    pub(crate) fn resume_cleanup(&self) -> bool {
        let mut state = self.state();
        if state.record.cleanup_due {
            state.litter = Some(self.litter_of(None));
        }
        state.record.cleanup_due
    }

    /// Whether its shim has ended, and that is not reported yet.
    pub(crate) fn is_unsettled(&self) -> bool {
        match &self.state().phase {
            Phase::Up { shim, .. } => shim.try_exit().is_some(),
            Phase::Ended { .. } => true,
            _ => false,
        }
    }

    /// Reports the end of the shim, if it has ended and that is not reported yet. It is on disk
    /// before, unless the disk refuses. Blocks on the disk.
    ///
    /// Fails if its record cannot be read for want of descriptors or memory: then the end is not
    /// settled, and this is to be called again.
    pub(crate) fn settle(&self) -> Result<(), FileError> {
        self.observe_end()?;
        if matches!(self.state().phase, Phase::Ended { .. })
            && let Err(error) = self.save()
        {
            tracing::warn!(id = self.id, %error, "how the box ended is not on disk");
        }
        self.report_end();
        Ok(())
    }

    /// Takes note of the end of the shim, if it has ended and that is not known yet.
    fn observe_end(&self) -> Result<(), FileError> {
        let mut state = self.state();
        let Phase::Up {
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
            // No record can fit that.
            Some(status) if status.code().is_none() => Ok(None),
            _ => match ExitRecord::read(&self.dir.join(FILES.exit)) {
                Err(error) if is_resource_exhaustion(&error.source) => return Err(error),
                record => record,
            },
        };
        let shim = Arc::clone(shim);
        let outcome = Outcome::of(
            Some(shim.record().clone()),
            exit.status,
            record,
            *stop_requested,
        );
        if outcome.may_leave_strays
            || state.has_probes()
            || self.has_group(shim.pid())
            || has_payload(&shim)
        {
            state.set_litter(Some(self.litter_of(Some(shim.pid()))));
        }
        state.note_end(Some(shim), outcome);
        Ok(())
    }

    /// Reports an end that is noted. [`settle`](Self::settle) saves it before.
    pub(crate) fn report_end(&self) {
        let mut state = self.state();
        let Some(was_running) = state.report() else {
            return;
        };
        if was_running {
            self.herald.run_is_over();
        }
        let info = state.info();
        let change = match info.status {
            BoxStatus::Stopped => BoxChange::Stopped,
            _ => BoxChange::Failed,
        };
        self.herald.tell(change, info);
    }

    /// Whether the control group of its last run is left, as far as can be told: that of a shim
    /// which could not end all that was in it.
    fn has_group(&self, shim: u32) -> bool {
        !matches!(ControlGroup::of_shim(&self.dir, shim), Ok(None))
    }

    fn litter_of(&self, session: Option<u32>) -> Litter {
        Litter {
            dir: self.dir.clone(),
            session,
        }
    }

    /// What its last run may have left behind.
    pub(crate) fn litter(&self) -> Option<Litter> {
        self.state().litter.clone()
    }

    /// Nothing of this is left.
    pub(crate) fn tidied(&self, litter: &Litter) {
        let mut state = self.state();
        if state.litter.as_ref() == Some(litter) {
            state.set_litter(None);
        }
    }

    /// Of this shim, if it is still the current one.
    pub(crate) fn set_health(&self, of: &Arc<ShimHandler>, health: HealthState) {
        let mut state = self.state();
        let current = matches!(&state.phase, Phase::Up { shim, .. } if Arc::ptr_eq(shim, of));
        if current && state.health != Some(health) {
            state.health = Some(health);
            self.herald.tell(BoxChange::Health, state.info());
        }
    }

    /// Gives up a start that is under way, and those that wait for their turn.
    pub(crate) fn give_up_starts(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
        if let Phase::Starting { interrupt, .. } = &self.state().phase {
            interrupt.cancel();
        }
    }

    pub(crate) fn shim(&self) -> Option<Arc<ShimHandler>> {
        match &self.state().phase {
            Phase::Up { shim, .. } => Some(Arc::clone(shim)),
            _ => None,
        }
    }

    /// The shim, if it runs: from now on its end counts as asked for.
    pub(crate) fn request_stop(&self) -> Result<Option<Arc<ShimHandler>>, RuntimeError> {
        // Whoever asks only now is too late; of want of descriptors it is seen to later.
        let _ = self.observe_end();
        let mut state = self.state();
        if state.gate == Gate::Removed {
            return Err(self.not_found());
        }
        Ok(state.request_stop())
    }

    /// Lets nothing else begin. The shim that is to be killed, if there is one.
    pub(crate) fn begin_removal(
        &self,
        force: bool,
    ) -> Result<Option<Arc<ShimHandler>>, RuntimeError> {
        let _ = self.observe_end();
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

    /// It could not be removed after all.
    pub(crate) fn keep(&self) {
        let mut state = self.state();
        if state.gate == Gate::Removing {
            state.gate = Gate::Open;
        }
    }

    pub(crate) fn removed(&self) {
        self.state().gate = Gate::Removed;
        self.herald.tell(BoxChange::Removed, self.state().info());
    }

    /// Lets nothing else begin, because the runtime ends. What has to end with it.
    pub(crate) fn close(&self) -> Option<Closing> {
        let _ = self.observe_end();
        let mut state = self.state();
        state.shut_gate();
        let grace = state.record.spec.stop_grace;
        let detached = state.is_detached();
        match &mut state.phase {
            Phase::Starting { interrupt, shim } => {
                interrupt.cancel();
                shim.clone().map(|shim| Closing {
                    shim,
                    grace: Duration::ZERO,
                })
            }
            Phase::Up {
                shim,
                stop_requested,
                ..
            } if !detached => {
                *stop_requested = true;
                Some(Closing {
                    shim: shim.handle().clone(),
                    grace,
                })
            }
            _ => None,
        }
    }

    /// The runtime is gone: a shim with a watchdog ends by itself.
    pub(crate) fn release_watchdog(&self) {
        let mut state = self.state();
        state.shut_gate();
        match &state.phase {
            Phase::Down | Phase::Ended { .. } => {}
            Phase::Starting { interrupt, shim } => {
                interrupt.cancel();
                // Nobody may be there to see to it.
                if let Some(shim) = shim {
                    let _ = shim.signal(vmm_protocol::KILL_SIGNAL);
                }
            }
            Phase::Up { shim, .. } => shim.release_watchdog(),
        }
    }

    /// Whether nothing of its last run is left to do: to report, to clean up, or to save.
    pub(crate) fn is_tidy(&self) -> bool {
        let state = self.state();
        let is_saved =
            state.version == self.saved.load(Ordering::Acquire) || state.damage.is_some();
        state.gate == Gate::Removed
            || state.litter.is_none() && is_saved && !matches!(state.phase, Phase::Ended { .. })
    }

    /// True for the one caller that is to go on tidying, until it has [finished](Self::finish_retries).
    pub(crate) fn begin_retries(&self) -> bool {
        !self.retrying.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn finish_retries(&self) {
        self.retrying.store(false, Ordering::Release);
    }

    /// Brings `box.json` up to date, if it is not. Blocks on the disk.
    pub(crate) fn save(&self) -> Result<(), FileError> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, version, is_over) = {
            let state = self.state();
            let current =
                state.version == self.saved.load(Ordering::Acquire) || state.damage.is_some();
            if current || matches!(state.gate, Gate::Removing | Gate::Removed) {
                return Ok(());
            }
            let is_over = matches!(state.phase, Phase::Down | Phase::Ended { .. });
            (state.to_record(), state.version, is_over)
        };
        record.write(&self.dir.join(FILES.spec))?;
        // By this the next runtime knows that the end is that of the last run. A payload may have
        // changed it.
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
