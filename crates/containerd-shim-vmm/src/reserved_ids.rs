use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The IDs of the containers that are being created. Two requests with one ID would write the same files.
#[derive(Debug, Default)]
pub(crate) struct ReservedIds(Mutex<BTreeSet<String>>);

/// Reserves an ID until it is dropped.
#[derive(Debug)]
pub(crate) struct ReservedId<'a> {
    ids: &'a ReservedIds,
    id: String,
}

impl ReservedIds {
    /// Reserves an ID; `None` if it is reserved already.
    pub(crate) fn reserve(&self, id: &str) -> Option<ReservedId<'_>> {
        let is_free = self.lock().insert(id.to_owned());
        is_free.then(|| ReservedId {
            ids: self,
            id: id.to_owned(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ReservedId<'_> {
    fn drop(&mut self) {
        self.ids.lock().remove(&self.id);
    }
}
