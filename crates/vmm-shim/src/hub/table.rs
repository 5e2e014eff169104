use std::collections::BTreeMap;

use vmm_protocol::frames::Turns;

use super::execution::{Execution, Reader};

/// How many executions that have ended are kept, for clients that ask later.
const KEPT_EXECUTIONS: usize = 64;

/// How many executions [are active](Execution::is_active) at once.
const MAX_ACTIVE: usize = 256;

/// The executions of a box, by id and by their stream to the payload.
#[derive(Debug, Default)]
pub(super) struct ExecutionTable {
    by_id: BTreeMap<String, Execution>,
    ids: BTreeMap<u32, String>,
    turns: Turns,
}

impl ExecutionTable {
    pub(super) fn insert(&mut self, execution: Execution) {
        self.ids
            .insert(execution.stream(), execution.id().to_owned());
        self.by_id.insert(execution.id().to_owned(), execution);
    }

    /// Returns the execution, also if it is not listed and has not ended.
    pub(super) fn get(&mut self, id: &str) -> Option<&mut Execution> {
        self.by_id.get_mut(id)
    }

    /// Returns the execution, if it is listed.
    pub(super) fn listed(&mut self, id: &str) -> Option<&mut Execution> {
        self.get(id).filter(|execution| execution.is_listed())
    }

    /// Returns the execution, if it is listed. One that no client has attached to yet is
    /// returned all the same, for the client that has started it.
    pub(super) fn attachable(&mut self, id: &str) -> Option<&mut Execution> {
        self.get(id).filter(|execution| execution.is_attachable())
    }

    /// Returns the reader of the execution, if it is [attachable](Self::attachable).
    pub(super) fn reader_of(&self, id: &str) -> Option<&Reader> {
        let execution = self.by_id.get(id);
        execution.filter(|it| it.is_attachable())?.reader()
    }

    pub(super) fn of_stream(&mut self, stream: u32) -> Option<&mut Execution> {
        self.by_id.get_mut(self.ids.get(&stream)?)
    }

    /// Returns the streams of all executions, in the order in which they are served now.
    pub(super) fn in_turn(&mut self) -> Vec<u32> {
        self.turns.order(&self.ids)
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Execution> {
        let execution = self.by_id.remove(id)?;
        self.ids.remove(&execution.stream());
        Some(execution)
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Execution> {
        self.by_id.values_mut()
    }

    /// Returns whether one more execution may be started.
    pub(super) fn has_room(&self) -> bool {
        let executions = self.by_id.values();
        let active = executions.filter(|execution| execution.is_active());
        active.count() < MAX_ACTIVE
    }

    /// Removes the executions that were started first, if too many that are not active are kept.
    pub(super) fn trim(&mut self) {
        let ids = self.ids.values();
        let ended = ids.filter(|id| !self.by_id[*id].is_active());
        let ended: Vec<_> = ended.cloned().collect();
        // Streams are numbered in the order of the starts.
        for id in &ended[..ended.len().saturating_sub(KEPT_EXECUTIONS)] {
            self.remove(id);
        }
    }
}
