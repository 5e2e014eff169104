//! What the driver knows of one box, and what the runtime must therefore report.

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

/// What the operator of a box shares with what ends the runtime.
#[derive(Default)]
pub(crate) struct Slot {
    /// Whether the box ends with its runtime.
    pub(crate) attached: bool,
    pub(crate) run: Option<Run>,
}

impl Slot {
    /// To be called before the runtime ends and again when it has. An orderly end also cancels
    /// starts, and kills what does not stop in time.
    pub(crate) fn runtime_ends(&mut self, orderly: bool) {
        if let Some(run) = &mut self.run {
            run.cancelled |= orderly;
            if self.attached {
                run.stop(orderly);
            }
        }
    }
}

/// What the runtime has reported of the box, and so has to report again.
#[derive(Clone)]
pub(crate) enum Known {
    Absent,
    /// It does not run.
    Down(View),
    Up(View),
    /// A start was asked for, and has not returned that it runs: it runs, or has run, or is as
    /// before.
    Perhaps(View),
}

/// How many operations are printed of a box with a loss.
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

    /// Compares a report of this runtime with the last one, and with what can have happened.
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
            (Known::Up(_) | Known::Perhaps(_), Some(_)) if runs => Known::Up(view),
            (known @ (Known::Up(_) | Known::Perhaps(_)), Some(run)) => {
                let ledger = Ledger::read(&self.ledger());
                let as_before = matches!(&known, Known::Perhaps(before) if *before == view);
                let not_started = run.cancelled || !run.has_begun(&ledger);
                if !(as_before && not_started)
                    && let Err(column) = run.judge(&view, &ledger, epoch)
                {
                    self.lose(column, (&view, run, ledger, epoch));
                }
                Known::Down(view)
            }
            _ => {
                self.lose(Column::EndsWrong, ("it runs, and was not started", &view));
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
