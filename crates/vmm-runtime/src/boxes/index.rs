use std::collections::{BTreeMap, HashMap};
use std::iter;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BoxId, MicroBox};
use crate::RuntimeError;

/// The boxes of a runtime, indexed by id and name.
#[derive(Debug, Default)]
pub(crate) struct Boxes(Mutex<Index>);

#[derive(Debug, Default)]
struct Index {
    /// Ids are ordered by creation.
    boxes: BTreeMap<BoxId, Arc<MicroBox>>,
    /// The id of the box that has, or has reserved, each name.
    names: HashMap<String, BoxId>,
}

impl Boxes {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a name for a box that is about to be created. Fails if another box has it as its
    /// name or its id.
    pub(crate) fn reserve_name(&self, name: &str, id: &BoxId) -> Result<(), RuntimeError> {
        let mut index = self.index();
        let holder = match index.boxes.get(name) {
            Some(bx) => Some(bx.id().clone()),
            None => index.names.get(name).cloned(),
        };
        match holder {
            Some(holder) => Err(RuntimeError::NameTaken {
                name: name.to_owned(),
                id: holder,
            }),
            None => {
                index.names.insert(name.to_owned(), id.clone());
                Ok(())
            }
        }
    }

    /// Releases the reserved name of a box that was not created.
    pub(crate) fn release_name(&self, name: &str) {
        self.index().names.remove(name);
    }

    /// Inserts a box. Calls `then` before any caller can find the box.
    pub(crate) fn insert(&self, bx: Arc<MicroBox>, then: impl FnOnce(&MicroBox)) {
        let mut index = self.index();
        then(&bx);
        index.boxes.insert(bx.id().clone(), bx);
    }

    /// Removes a box and releases its name.
    pub(crate) fn remove(&self, id: &str) {
        let mut index = self.index();
        let bx = index.boxes.remove(id);
        if let Some(name) = bx.and_then(|bx| bx.name())
            && index
                .names
                .get(&name)
                .is_some_and(|owner_id| owner_id == id)
        {
            index.names.remove(&name);
        }
    }

    /// Returns the box with this id, or else with this name, or else the only one whose id begins
    /// with this text.
    pub(crate) fn find(&self, wanted: &str) -> Result<Arc<MicroBox>, RuntimeError> {
        let index = self.index();
        let by_name = || index.boxes.get(index.names.get(wanted)?);
        if let Some(bx) = index.boxes.get(wanted).or_else(by_name) {
            return Ok(Arc::clone(bx));
        }
        let not_found = || RuntimeError::NotFound {
            wanted: wanted.to_owned(),
        };
        if wanted.is_empty() || wanted.len() >= ulid::ULID_LEN {
            return Err(not_found());
        }
        let from = (Bound::Included(wanted), Bound::Unbounded);
        let mut with_prefix = index
            .boxes
            .range::<str, _>(from)
            .take_while(|(id, _)| id.starts_with(wanted));
        match (with_prefix.next(), with_prefix.next()) {
            (None, _) => Err(not_found()),
            (Some((_, bx)), None) => Ok(Arc::clone(bx)),
            (Some(_), Some(_)) => Err(RuntimeError::Ambiguous {
                wanted: wanted.to_owned(),
            }),
        }
    }

    /// Returns at most `limit` boxes in the order of their creation, or in the reverse order, beginning
    /// after the box `after`.
    pub(crate) fn slice(
        &self,
        after: Option<&BoxId>,
        newest_first: bool,
        limit: usize,
    ) -> Vec<Arc<MicroBox>> {
        let index = self.index();
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = if newest_first {
            (Bound::Unbounded, after)
        } else {
            (after, Bound::Unbounded)
        };
        let mut range = index.boxes.range::<BoxId, _>(range);
        let next = || {
            if newest_first {
                range.next_back()
            } else {
                range.next()
            }
        };
        let boxes = iter::from_fn(next).take(limit);
        boxes.map(|(_, bx)| Arc::clone(bx)).collect()
    }

    /// Returns all boxes in the order of their creation.
    pub(crate) fn all(&self) -> Vec<Arc<MicroBox>> {
        self.index().boxes.values().cloned().collect()
    }
}
