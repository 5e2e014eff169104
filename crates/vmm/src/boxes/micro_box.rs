use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use shim_reaper::ShimHandle;
use tokio_util::sync::CancellationToken;
use vmm_shim::{ControlGroup, ExitRecord, FILES, FileError, PidRecord};

use super::gate::Gate;
use super::phase::Phase;
use super::state::State;
use super::{Beginning, BoxInfo, BoxRecord, BoxStatus, Closing, Outcome};
use crate::event::Herald;
use crate::process::Litter;
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
    /// The version of the record that the disk has.
    saved: Mutex<u64>,
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
            saved: Mutex::new(0),
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

    /// As it is now: an end that nobody has noticed yet is noticed here.
    pub(crate) fn info(&self) -> BoxInfo {
        self.settle();
        self.state().info()
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
        self.settle();
        let mut state = self.state();
        self.check_gate(&state)?;
        if stops != self.stops() {
            return Ok(Beginning::GivenUp);
        }
        match &state.phase {
            Phase::Up {
                shim, ending: true, ..
            } => return Ok(Beginning::After(Arc::clone(shim))),
            Phase::Up { .. } => return Ok(Beginning::Running),
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

    /// One that was given up leaves the box as it was.
    pub(crate) fn start_failed(&self, error: &StartError) {
        // Whose failure it was, for the next opening.
        let record = PidRecord::read(&self.dir.join(FILES.shim_pid));
        let record = record.ok().flatten();
        let exit = ExitRecord::read(&self.dir.join(FILES.exit));
        let mut state = self.state();
        let on_record = matches!(exit, Ok(Some(_)));
        if error.may_leave_strays() && !on_record || self.has_group() {
            let session = record.as_ref().map(|shim| shim.pid);
            state.litter = Some(self.litter_of(session));
        }
        match error {
            StartError::Interrupted => state.phase = Phase::Down,
            _ => {
                let outcome = Outcome::of_start(error, record);
                self.ended(&mut state, outcome);
            }
        }
    }

    /// Whether the record already says how this shim ended.
    pub(crate) fn knows_end_of(&self, shim: &PidRecord) -> bool {
        let state = self.state();
        let last = state.record.last.as_ref();
        last.is_some_and(|last| last.shim.as_ref() == Some(shim))
    }

    /// It was found ended when the runtime was opened.
    pub(crate) fn found_ended(&self, outcome: Outcome) {
        let mut state = self.state();
        if outcome.may_leave_strays || state.has_probes() || self.has_group() {
            state.litter = Some(self.litter_of(None));
        }
        state.conclude(outcome);
    }

    /// Takes note of the end of the shim, if it has ended and that is not known yet.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        let Phase::Up {
            shim,
            stop_requested,
            ..
        } = &state.phase
        else {
            return;
        };
        let Some(exit) = shim.try_exit() else {
            return;
        };
        let outcome = Outcome::of(
            Some(shim.record().clone()),
            exit.status,
            ExitRecord::read(&self.dir.join(FILES.exit)),
            *stop_requested,
        );
        if outcome.may_leave_strays || state.has_probes() || self.has_group() {
            state.litter = Some(self.litter_of(Some(shim.pid())));
        }
        self.herald.run_is_over();
        self.ended(&mut state, outcome);
    }

    fn ended(&self, state: &mut State, outcome: Outcome) {
        let change = match outcome.status {
            BoxStatus::Stopped => BoxChange::Stopped,
            _ => BoxChange::Failed,
        };
        state.conclude(outcome);
        self.herald.tell(change, state.info());
    }

    /// Whether the control group of its last run is left, as far as can be told: that of a shim
    /// which could not end all that was in it.
    fn has_group(&self) -> bool {
        !matches!(ControlGroup::of_box(&self.dir), Ok(None))
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
            state.litter = None;
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
        self.settle();
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
        self.settle();
        let mut state = self.state();
        self.check_gate(&state)?;
        if !force && !matches!(state.phase, Phase::Down) {
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
        self.settle();
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
    pub(crate) fn let_go(&self) {
        let mut state = self.state();
        state.shut_gate();
        match &state.phase {
            Phase::Down => {}
            Phase::Starting { interrupt, shim } => {
                interrupt.cancel();
                // Nobody may be there to see to it.
                if let Some(shim) = shim {
                    let _ = shim.signal(vmm_shim::KILL_SIGNAL);
                }
            }
            Phase::Up { shim, .. } => shim.let_go(),
        }
    }

    /// Brings `box.json` up to date, if it is not. Blocks on the disk.
    pub(crate) fn save(&self) -> Result<(), FileError> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, version) = {
            let state = self.state();
            let current = state.version == *saved || state.damage.is_some();
            if current || matches!(state.gate, Gate::Removing | Gate::Removed) {
                return Ok(());
            }
            (state.record.clone(), state.version)
        };
        record.write(&self.dir.join(FILES.spec))?;
        *saved = version;
        Ok(())
    }
}
