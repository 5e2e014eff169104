use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::MicroBox;
use crate::RuntimeError;

/// All boxes of a runtime, by id and by name.
#[derive(Debug, Default)]
pub(crate) struct Boxes(Mutex<Index>);

#[derive(Debug, Default)]
struct Index {
    /// Ids are ordered by creation.
    boxes: BTreeMap<String, Arc<MicroBox>>,
    /// The ids of those who have, or are about to have, a name.
    names: HashMap<String, String>,
}

impl Boxes {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a name for a box that is about to be made. A name may not be another box's id either.
    pub(crate) fn reserve(&self, name: &str, id: &str) -> Result<(), RuntimeError> {
        let mut index = self.index();
        let holder = match index.boxes.get(name) {
            Some(namesake) => Some(namesake.id().to_owned()),
            None => index.names.get(name).cloned(),
        };
        match holder {
            Some(holder) => Err(RuntimeError::NameTaken {
                name: name.to_owned(),
                id: holder,
            }),
            None => {
                index.names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    /// Gives back a name that was kept for a box which then was not made.
    pub(crate) fn release(&self, name: &str) {
        self.index().names.remove(name);
    }

    /// `then` is done before anybody can find it.
    pub(crate) fn insert(&self, made: Arc<MicroBox>, then: impl FnOnce(&MicroBox)) {
        let mut index = self.index();
        then(&made);
        index.boxes.insert(made.id().to_owned(), made);
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut index = self.index();
        let removed = index.boxes.remove(id);
        if let Some(name) = removed.and_then(|removed| removed.name())
            && index.names.get(&name).is_some_and(|holder| holder == id)
        {
            index.names.remove(&name);
        }
    }

    /// By id, or else by name.
    pub(crate) fn find(&self, wanted: &str) -> Result<Arc<MicroBox>, RuntimeError> {
        let index = self.index();
        let by_name = || index.boxes.get(index.names.get(wanted)?);
        index
            .boxes
            .get(wanted)
            .or_else(by_name)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound {
                wanted: wanted.to_owned(),
            })
    }

    /// Those created after the one with this id, which may be gone, in the order of their creation.
    pub(crate) fn after(&self, id: &str, limit: usize) -> Vec<Arc<MicroBox>> {
        let later = (Bound::Excluded(id), Bound::Unbounded);
        let index = self.index();
        let boxes = index.boxes.range::<str, _>(later).take(limit);
        boxes.map(|(_, found)| Arc::clone(found)).collect()
    }

    /// In the order of their creation.
    pub(crate) fn all(&self) -> Vec<Arc<MicroBox>> {
        self.index().boxes.values().cloned().collect()
    }
}
