//! The driver's knowledge of one box, and what the runtime must therefore report.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_runtime::BoxStatus;

use crate::losses::{Column, Losses};
use crate::observer::ObservedRun;
use crate::oracle::Run;
use crate::payload::Kind;
use crate::sequence::Sequence;
use crate::server::{Change, View};
use crate::slots::{Event, SlotState, Slots};

/// What the runtime last reported of the box, and must report again.
#[derive(Clone)]
pub(crate) enum Known {
    Absent,
    /// The box is not running.
    Down(View),
    Up(View),
    /// A start was requested and has not succeeded: the box is running, has run, or is as before.
    Unsure(View),
}

/// The number of actions and events printed for a box with a loss.
const HISTORY: usize = 40;

pub(crate) struct Account {
    number: usize,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) known: Known,
    pub(crate) sequence: Sequence,
    slots: Arc<Slots>,
    losses: Arc<Losses>,
    history: Mutex<VecDeque<String>>,
    began: Instant,
}

impl Account {
    pub(crate) fn new(number: usize, slots: Arc<Slots>, losses: Arc<Losses>) -> Self {
        Self {
            number,
            name: String::new(),
            kind: Kind::Exit,
            known: Known::Absent,
            sequence: Sequence::default(),
            slots,
            losses,
            history: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Begins with the next box.
    pub(crate) fn renew(&mut self, kind: Kind, attached: bool, restarts: bool) {
        let mut slot = self.slots.get(self.number).lock();
        slot.renew(attached, restarts);
        self.name = Slots::name(self.number, slot.generation);
        drop(slot);
        self.kind = kind;
        self.sequence = Sequence::default();
        self.history = Mutex::default();
    }

    /// Compares a report with the previous one and with what can have happened.
    pub(crate) fn observe(&mut self, view: View, epoch: u64) {
        let runs = view.status == BoxStatus::Running;
        let run = self.locked().run.clone();
        if !runs && self.sequence.is_up(epoch) {
            self.lose(Column::EventsLost, ("no event of the end", &view));
        }
        self.known = match (self.known.clone(), run) {
            (Known::Down(before), _) if !runs => {
                if before != view {
                    self.lose(Column::EndsForgotten, (before, &view));
                }
                Known::Down(view)
            }
            (Known::Up(_) | Known::Unsure(_), Some(_)) if runs => Known::Up(view),
            (known @ (Known::Up(_) | Known::Unsure(_)), Some(run)) => {
                let as_before = matches!(&known, Known::Unsure(before) if *before == view);
                let has_begun = self.locked().observed.len() > run.before;
                if !(as_before && (run.cancelled || !has_begun)) {
                    self.judge(&view, epoch, None);
                }
                Known::Down(view)
            }
            _ => {
                self.lose(Column::EndsWrong, ("running without a start", &view));
                Known::Up(view)
            }
        };
    }

    /// Judges the events that the runtime has reported since the last call.
    pub(crate) fn judge_events(&mut self) {
        let (events, attached) = {
            let mut slot = self.locked();
            (std::mem::take(&mut slot.events), slot.attached)
        };
        for event in events {
            self.judge_event(event, attached);
        }
    }

    fn judge_event(&mut self, event: Event, attached: bool) {
        let Event {
            epoch,
            generation,
            change,
            view,
        } = event;
        if generation != self.locked().generation {
            self.lose(Column::EventsWrong, ("after the removal", change, view));
            return;
        }
        if change != Change::Closed {
            self.note(format!(
                "{change:?} in {epoch}: {:?}",
                view.as_ref().and_then(|view| view.ending.as_ref())
            ));
        }
        let payload = self.sequence.payload(epoch);
        let is_failed_start = !self.sequence.is_up(epoch);
        if let Err(column) = self
            .sequence
            .advance(epoch, change, view.as_ref(), attached)
        {
            self.lose(column, (change, &view));
        }
        let Some(view) = view.filter(|_| change == Change::Ended) else {
            return;
        };
        // A start that failed before it had a shim has no ending, and is judged by its reply.
        if view.ending.is_none() && is_failed_start {
            return;
        }
        self.judge(&view, epoch, payload);
    }

    /// Judges a reported end: of the run with this payload, if it is known, or of one since the last
    /// start.
    fn judge(&self, view: &View, epoch: u64, payload: Option<u32>) {
        let slot = self.locked();
        let SlotState { run, observed, .. } = &*slot;
        let Some(run) = run else {
            drop(slot);
            self.lose(Column::EndsWrong, ("an end without a start", view));
            return;
        };
        let is_candidate = |observed: &&ObservedRun| match payload {
            Some(payload) => observed.is_of(payload),
            None => observed.number > run.before,
        };
        let candidates = || observed.iter().filter(is_candidate);
        // A restart may be killed before its payload is observed.
        let may_be_unobserved = payload.is_none() && slot.restarts;
        let verdict = run.judge(view, candidates(), may_be_unobserved, epoch);
        let statuses: Vec<_> = candidates().map(ObservedRun::status).collect();
        let seen = format!("{:?} {statuses:?}", candidates().collect::<Vec<_>>());
        // Unless the payload is known, another run of a box with restarts may have begun since.
        let is_exact = payload.is_some() || !slot.restarts;
        let running = candidates().flat_map(ObservedRun::running);
        let running: Vec<_> = running.filter(|_| is_exact).collect();
        let run = run.clone();
        drop(slot);
        if let Err(column) = verdict {
            self.lose(column, (view, run, seen, epoch));
        }
        if !running.is_empty() {
            self.lose(Column::ProcessesLeft, ("run after the end", view, running));
        }
    }

    pub(crate) fn locked(&self) -> MutexGuard<'_, SlotState> {
        self.slots.get(self.number).lock()
    }

    pub(crate) fn with_run(&self, change: impl FnOnce(&mut Run)) {
        if let Some(run) = &mut self.locked().run {
            change(run);
        }
    }

    pub(crate) fn note(&self, what: String) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push_back(format!("{:>9.3?} {what}", self.began.elapsed()));
        if history.len() > HISTORY {
            history.pop_front();
        }
    }

    pub(crate) fn lose(&self, column: Column, details: impl Debug) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let history = history.make_contiguous().join("\n    ");
        let name = &self.name;
        self.losses
            .add(column, format!("{name}: {details:?}\n    {history}"));
    }
}
