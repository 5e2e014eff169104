use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use shim_reaper::Pidfd;
use tokio::time::{Instant, sleep, timeout_at};

use super::Litter;
use super::search::{self, Found};
use crate::lifecycle::STUCK_AFTER;
use crate::workers::Workers;

/// How long a search may fail for want of descriptors or memory before the cleanup fails.
const SHORTAGE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Ends what payloads have left behind: descendants that outlived a shim which had no time to see
/// to them. A payload dies with its shim, what it has started does not.
///
/// A control group knows them all. Of a payload without one, who has left both the session and the
/// environment is not found.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    requests: Mutex<Requests>,
    /// One search at a time, for all who want one: it looks at every process of the host. Nothing
    /// waits under this lock for a process to exit.
    search: Mutex<()>,
}

#[derive(Debug, Default)]
struct Requests {
    wanted: HashSet<Litter>,
    /// By a search on behalf of another caller.
    found: HashMap<Litter, io::Result<Found>>,
}

impl Strays {
    /// Waits until they have exited, for as long as SIGKILL may take, and removes their control
    /// groups. The searches run on `worker`.
    ///
    /// Each litter is one caller's at a time: it is searched for in its box's turn.
    ///
    /// Fails if some survive that, or if for want of descriptors or memory none could be looked for.
    pub(crate) async fn end(self: &Arc<Self>, litter: &Litter, worker: &Workers) -> io::Result<()> {
        let begun = Instant::now();
        let mut dead = Vec::new();
        loop {
            self.request(litter);
            let search = {
                let (strays, litter) = (Arc::clone(self), litter.clone());
                worker.run(move || strays.search(&litter))
            };
            let found = match search.await.map_err(io::Error::other)? {
                Ok(found) => found,
                Err(_) if begun.elapsed() < SHORTAGE_TIMEOUT => {
                    sleep(POLL_INTERVAL).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            dead.extend(found.killed);
            let Some(pid) = found.awaited.first().map(Pidfd::pid) else {
                let finish = worker.run(move || search::finish(&dead, found.group));
                return finish.await.map_err(io::Error::other)?;
            };
            let exited = timeout_at(
                begun + STUCK_AFTER,
                join_all(found.awaited.iter().map(exited)),
            );
            if exited.await.is_err() || begun.elapsed() >= STUCK_AFTER {
                let message = format!("process {pid} survives SIGKILL, or was only one of many");
                return Err(io::Error::other(message));
            }
        }
    }

    /// Has the next search include this litter, also if that is another caller's.
    fn request(&self, litter: &Litter) {
        let mut requests = self.requests();
        requests.found.remove(litter);
        requests.wanted.insert(litter.clone());
    }

    fn search(&self, litter: &Litter) -> io::Result<Found> {
        let _searching = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = {
            let mut requests = self.requests();
            if let Some(found) = requests.found.remove(litter) {
                return found;
            }
            let mut wanted = std::mem::take(&mut requests.wanted);
            wanted.insert(litter.clone());
            wanted
        };
        let mut found = search::kill_all(&wanted);
        let mut found_of = |litter: &Litter| match &mut found {
            Ok(found) => Ok(found.remove(litter).unwrap_or_default()),
            Err(error) => Err(clone_error(error)),
        };
        let own = found_of(litter);
        let others = wanted.iter().filter(|other| *other != litter);
        let others = others.map(|other| (other.clone(), found_of(other)));
        self.requests().found.extend(others);
        own
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn exited(killed: &Pidfd) {
    while !killed.has_exited() {
        if killed.exited().await.is_err() {
            // No descriptor is left to wait with.
            sleep(POLL_INTERVAL).await;
        }
    }
}

fn clone_error(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
