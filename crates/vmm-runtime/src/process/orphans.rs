use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use shim_reaper::{Pidfd, ShimReaper};
use tokio::time::{Instant, sleep, timeout_at};
use vmm_protocol::with_causes;

use super::search::{self, SearchResult};
use super::{CleanupTarget, SIGKILL_TIMEOUT};
use crate::workers::Workers;

/// How long searches may fail for lack of descriptors or memory before the cleanup fails.
const SHORTAGE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A cleaner that kills orphans: descendants of a payload whose shim died before it could kill
/// them. A payload dies with its shim, but its descendants do not.
///
/// A control group contains all descendants. Without one, a descendant that left both the session
/// and the environment is not found.
#[derive(Debug)]
pub(crate) struct OrphanCleaner {
    /// The reaper of the running shims, whose descendants are not orphans.
    reaper: ShimReaper,
    requests: Mutex<Requests>,
    /// Serializes the searches: a search serves all waiting callers, because it may read every
    /// process of the host. No holder waits for a process to exit.
    search: Mutex<()>,
}

#[derive(Debug, Default)]
struct Requests {
    wanted: HashSet<CleanupTarget>,
    /// Results of a search by another caller.
    found: HashMap<CleanupTarget, io::Result<SearchResult>>,
}

impl OrphanCleaner {
    /// Creates a cleaner for the shims of this reaper.
    pub(crate) fn new(reaper: ShimReaper) -> Self {
        Self {
            reaper,
            requests: Mutex::default(),
            search: Mutex::default(),
        }
    }

    /// Kills the orphans of `target`, waits up to [`SIGKILL_TIMEOUT`] for their exit, and removes
    /// the control group. Searches run on `worker`.
    ///
    /// Each target has one caller at a time, which holds the operation lock of the box.
    ///
    /// Fails if an orphan survives SIGKILL, if the payload has created more control groups than can
    /// be removed in this time (the next call finds fewer), or if no search was possible for lack
    /// of descriptors or memory.
    pub(crate) async fn clean(
        self: &Arc<Self>,
        target: &CleanupTarget,
        worker: &Workers,
    ) -> io::Result<()> {
        let start = Instant::now();
        let mut dead = Vec::new();
        loop {
            self.request(target);
            let search = {
                let (cleaner, target) = (Arc::clone(self), target.clone());
                worker.run(move || cleaner.search(&target))
            };
            let found = search.await.map_err(io::Error::other)?;
            let found = found.and_then(|mut found| {
                dead.append(&mut found.killed);
                found.failure.take().map_or(Ok(found), Err)
            });
            let found = match found {
                Ok(found) => found,
                Err(_) if start.elapsed() < SHORTAGE_TIMEOUT => {
                    sleep(POLL_INTERVAL).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if found.awaited.is_empty() && !found.is_partial {
                let finish = worker.run(move || search::finish(&dead, found.group));
                return finish.await.map_err(io::Error::other)?;
            }
            let exited = timeout_at(
                start + SIGKILL_TIMEOUT,
                join_all(found.awaited.iter().map(exited)),
            );
            if exited.await.is_err() || start.elapsed() >= SIGKILL_TIMEOUT {
                let message = match found.awaited.first().map(Pidfd::pid) {
                    Some(pid) => {
                        format!("orphan {pid} survived SIGKILL, or new orphans keep appearing")
                    }
                    None => "some control groups are left, because the payload has created very \
                             many; the next cleanup continues"
                        .to_owned(),
                };
                return Err(io::Error::other(message));
            }
        }
    }

    /// Adds the target to the next search, by whichever caller.
    fn request(&self, target: &CleanupTarget) {
        let mut requests = self.requests();
        requests.found.remove(target);
        requests.wanted.insert(target.clone());
    }

    /// Returns the result for `target`, from a search by another caller or from a new one.
    fn search(&self, target: &CleanupTarget) -> io::Result<SearchResult> {
        let _search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = {
            let mut requests = self.requests();
            if let Some(found) = requests.found.remove(target) {
                return found;
            }
            let mut wanted = std::mem::take(&mut requests.wanted);
            wanted.insert(target.clone());
            wanted
        };
        let mut found = search::kill_all(&wanted, &self.reaper);
        let mut found_of = |target: &CleanupTarget| match &mut found {
            Ok(found) => Ok(found.remove(target).unwrap_or_default()),
            Err(error) => Err(clone_error(error)),
        };
        let own = found_of(target);
        let others = wanted.iter().filter(|other| *other != target);
        let others = others.map(|other| (other.clone(), found_of(other)));
        self.requests().found.extend(others);
        own
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until a killed process has exited.
async fn exited(killed: &Pidfd) {
    while !killed.has_exited() {
        if killed.exited().await.is_err() {
            // No descriptor is left to wait on.
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Copies an I/O error, which does not implement `Clone`.
fn clone_error(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), with_causes(error)),
    }
}
