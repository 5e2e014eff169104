//! The driver's knowledge of one box, and what the runtime must therefore report.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_runtime::BoxStatus;

use crate::losses::{Column, Losses};
use crate::oracle::Run;
use crate::payload::{Kind, Ledger};
use crate::server::View;

/// The state that the operator of a box shares with the code that ends the runtime.
#[derive(Default)]
pub(crate) struct Slot {
    /// Whether the box ends with its runtime.
    pub(crate) attached: bool,
    pub(crate) run: Option<Run>,
}

impl Slot {
    /// Marks that the runtime ends. Called before it ends and again when it has ended. An orderly
    /// end also cancels starts, and kills payloads that do not stop in time.
    pub(crate) fn runtime_ends(&mut self, orderly: bool) {
        if let Some(run) = &mut self.run {
            run.cancelled |= orderly;
            if self.attached {
                run.stop(orderly);
            }
        }
    }
}

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

/// The number of operations printed for a box with a loss.
const HISTORY: usize = 16;

pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) known: Known,
    pub(crate) slot: Arc<Mutex<Slot>>,
    ledgers: PathBuf,
    losses: Arc<Losses>,
    history: Mutex<VecDeque<String>>,
    began: Instant,
}

impl Account {
    pub(crate) fn new(root: &Path, losses: Arc<Losses>) -> Self {
        Self {
            name: String::new(),
            kind: Kind::Exit,
            known: Known::Absent,
            slot: Arc::default(),
            ledgers: root.join("ledger"),
            losses,
            history: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Compares a report with the previous one and with what can have happened.
    pub(crate) fn observe(&mut self, view: View, epoch: u64) {
        let runs = view.status == BoxStatus::Running;
        let run = self.locked().run.clone();
        self.known = match (self.known.clone(), run) {
            (Known::Down(before), _) if !runs => {
                if before != view {
                    self.lose(Column::EndsForgotten, (before, &view));
                }
                Known::Down(view)
            }
            (Known::Up(_) | Known::Unsure(_), Some(_)) if runs => Known::Up(view),
            (known @ (Known::Up(_) | Known::Unsure(_)), Some(run)) => {
                let ledger = Ledger::read(&self.ledger());
                let as_before = matches!(&known, Known::Unsure(before) if *before == view);
                let not_started = run.cancelled || !run.has_begun(&ledger);
                if !(as_before && not_started)
                    && let Err(column) = run.judge(&view, &ledger, epoch)
                {
                    self.lose(column, (&view, run, ledger, epoch));
                }
                Known::Down(view)
            }
            _ => {
                self.lose(Column::EndsWrong, ("running without a start", &view));
                Known::Up(view)
            }
        };
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.ledgers.join(&self.name)
    }

    pub(crate) fn locked(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
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
