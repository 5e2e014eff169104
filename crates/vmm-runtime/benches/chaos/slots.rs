//! What several tasks know of the boxes: one slot for each box that exists at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::observer::ObservedRun;
use crate::oracle::Run;
use crate::server::{Change, View};

/// The state of a box that its operator shares with the observer, with the reader of events, and
/// with the code that ends the runtime.
#[derive(Debug, Default)]
pub(crate) struct SlotState {
    /// The number of boxes that this slot has had.
    pub(crate) generation: usize,
    /// Whether the box ends with its runtime.
    pub(crate) attached: bool,
    /// Whether the runtime restarts the box by itself.
    pub(crate) restarts: bool,
    pub(crate) run: Option<Run>,
    pub(crate) observed: Vec<ObservedRun>,
    /// The events that the operator has not judged yet.
    pub(crate) events: Vec<Event>,
}

#[derive(Debug)]
pub(crate) struct Event {
    /// The epoch of the runtime that reported it.
    pub(crate) epoch: u64,
    pub(crate) generation: usize,
    pub(crate) change: Change,
    /// `None` for [`Change::Closed`].
    pub(crate) view: Option<View>,
}

impl SlotState {
    /// Begins with the next box.
    pub(crate) fn renew(&mut self, attached: bool, restarts: bool) {
        *self = Self {
            generation: self.generation + 1,
            attached,
            restarts,
            ..Self::default()
        };
    }

    /// Marks that the payload of a run is about to end by itself.
    pub(crate) fn run_ends(&mut self, generation: usize, number: usize) {
        let run = self.observed.iter_mut().find(|run| run.number == number);
        if let Some(run) = run.filter(|_| self.generation == generation) {
            run.has_ended = true;
        }
    }

    /// Marks that the runtime ends. Called before it ends and again when it has ended. An orderly
    /// end also cancels starts, and kills payloads that do not stop in time.
    pub(crate) fn runtime_ends(&mut self, orderly: bool) {
        if let Some(run) = &mut self.run {
            run.cancelled |= orderly;
            if self.attached {
                run.stop(orderly);
            }
            // The runtime may be restarting the box: its end interrupts that start.
            if self.restarts {
                run.interrupted = true;
                run.forced |= orderly;
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<SlotState>);

impl Slot {
    pub(crate) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Slots(Vec<Slot>);

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| Slot::default()).collect())
    }

    /// Returns the name of a box, which is never the beginning of that of another.
    pub(crate) fn name(number: usize, generation: usize) -> String {
        format!("box-{number}-{generation}-")
    }

    pub(crate) fn get(&self, number: usize) -> &Slot {
        &self.0[number]
    }

    /// Returns the slot of the box with this name, and which box of the slot it is.
    pub(crate) fn find(&self, name: &str) -> Option<(&Slot, usize)> {
        let mut parts = name.strip_prefix("box-")?.split('-');
        let mut number = || parts.next()?.parse::<usize>().ok();
        let (slot, generation) = (number()?, number()?);
        Some((self.0.get(slot)?, generation))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = MutexGuard<'_, SlotState>> {
        self.0.iter().map(Slot::lock)
    }
}
