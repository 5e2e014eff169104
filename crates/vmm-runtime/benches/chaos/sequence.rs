//! The order of the events of one box.

use crate::losses::Column;
use crate::server::{Change, View};

/// The events of a box from one runtime, of which the driver keeps the last.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    epoch: u64,
    last: Option<Change>,
    /// The pid of the payload, while the box is running.
    payload: Option<u32>,
}

impl Sequence {
    /// Checks that the change can follow the last one.
    pub(crate) fn advance(
        &mut self,
        epoch: u64,
        change: Change,
        view: Option<&View>,
        attached: bool,
    ) -> Result<(), Column> {
        use Change::{Cancelled, Closed, Created, Ended, Health, Removed, Started, Starting};
        if self.epoch != epoch {
            *self = Self {
                epoch,
                ..Self::default()
            };
        }
        let last = self.last.replace(change);
        match change {
            Started => self.payload = view.and_then(|view| view.payload_pid),
            Health => {}
            _ => self.payload = None,
        }
        // A start that fails without a shim follows anything but the start of a run.
        let has_ending = view.is_some_and(|view| view.ending.is_some());
        match (last, change) {
            // A runtime re-attaches to a box without an event.
            (None, _) => Ok(()),
            (Some(Starting | Started | Health), Closed) if attached => Err(Column::EventsLost),
            (_, Closed) => Ok(()),
            (Some(Created | Ended | Cancelled), Starting | Removed) => Ok(()),
            (Some(Created | Cancelled), Ended) if !has_ending => Ok(()),
            (Some(Ended), Ended) if !has_ending => Ok(()),
            (Some(Ended), Ended) => Err(Column::EndsReportedTwice),
            // A stop or a removal ends the restart that was due.
            (Some(Ended), Cancelled) => Ok(()),
            (Some(Starting), Starting | Started | Cancelled | Ended) => Ok(()),
            (Some(Started | Health), Health | Ended) => Ok(()),
            (Some(Starting | Started | Health), Starting | Removed) => Err(Column::EventsLost),
            _ => Err(Column::EventsWrong),
        }
    }

    /// Returns whether the box is starting or running according to the events of this epoch.
    pub(crate) fn is_up(&self, epoch: u64) -> bool {
        use Change::{Health, Started, Starting};
        self.epoch == epoch && matches!(self.last, Some(Starting | Started | Health))
    }

    /// Returns the last event of this epoch.
    pub(crate) fn last(&self, epoch: u64) -> Option<Change> {
        self.last.filter(|_| self.epoch == epoch)
    }

    /// Returns the pid of the payload that is running according to the events of this epoch.
    pub(crate) fn payload(&self, epoch: u64) -> Option<u32> {
        self.payload.filter(|_| self.epoch == epoch)
    }
}
