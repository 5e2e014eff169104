use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Litter, search};

/// Ends what payloads have left behind: descendants that outlived a shim which had no time to see
/// to them. A payload dies with its shim, what it has started does not.
///
/// A control group knows them all. Of a payload without one, who has left both the session and the
/// environment is not found.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    requests: Mutex<Requests>,
    /// One search at a time, for all who want one: it looks at every process of the host.
    search: Mutex<()>,
}

#[derive(Debug, Default)]
struct Requests {
    wanted: HashSet<Litter>,
    /// What a search on behalf of somebody else has not ended.
    failed: HashMap<Litter, io::Error>,
}

impl Strays {
    /// Has the next search include this litter. [`end`](Self::end) is to be called next.
    ///
    /// Each litter is one caller's at a time: it is searched for in its box's turn.
    pub(crate) fn request(&self, litter: Litter) {
        self.requests().wanted.insert(litter);
    }

    /// Blocks until they have ended and their control groups are removed, for some seconds at most.
    ///
    /// Fails if some survive that, or if for want of descriptors or memory none could be looked for.
    pub(crate) fn end(&self, litter: &Litter) -> io::Result<()> {
        let _searching = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = {
            let mut requests = self.requests();
            if !requests.wanted.contains(litter) {
                // Somebody else's search was for this one, too.
                return requests.failed.remove(litter).map_or(Ok(()), Err);
            }
            std::mem::take(&mut requests.wanted)
        };
        let mut failed = search::end_all(&wanted);
        let ended = failed.remove(litter).map_or(Ok(()), Err);
        self.requests().failed.extend(failed);
        ended
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
