use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::access::Access;

/// How many connections there may be: so many to the owner's sockets, and as many for strangers,
/// who do not shut the owner out.
#[derive(Debug)]
pub(crate) struct Room {
    owner: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    unauthenticated: Arc<Unauthenticated>,
    /// Held while waiting for a place over TCP: connections that the next listener lets in
    /// meanwhile would not be closed for this one.
    turn: tokio::sync::Mutex<()>,
}

impl Room {
    pub(crate) fn new(connections: usize) -> Self {
        let places = places(connections, getrlimit(Resource::Nofile).current);
        Self {
            owner: Arc::new(Semaphore::new(places)),
            strangers: Arc::new(Semaphore::new(places)),
            unauthenticated: Arc::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Waits for one, which lasts until it is dropped. Over TCP the oldest connection that has not
    /// authenticated makes room, unless the server is about to end: what it has sent is then still
    /// served. Cancelling `close` closes the connection that gets the place.
    pub(crate) async fn place(
        &self,
        access: &Access,
        close: &CancellationToken,
        closing: &CancellationToken,
    ) -> Option<Place> {
        // The semaphores are never closed.
        match access {
            Access::Owner => {
                let permit = Arc::clone(&self.owner).acquire_owned().await.ok()?;
                Some(Place {
                    _permit: permit,
                    unauthenticated: None,
                })
            }
            Access::Bearer(_) => {
                let _turn = self.turn.lock().await;
                if self.strangers.available_permits() == 0 && !closing.is_cancelled() {
                    self.unauthenticated.close_oldest();
                }
                let permit = Arc::clone(&self.strangers).acquire_owned().await.ok()?;
                let id = self.unauthenticated.add(close.clone());
                Some(Place {
                    _permit: permit,
                    unauthenticated: Some((Arc::clone(&self.unauthenticated), id)),
                })
            }
        }
    }
}

/// A connection's place among those that there may be.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    /// `None` for the owner.
    unauthenticated: Option<(Arc<Unauthenticated>, u64)>,
}

impl Place {
    /// Keeps the place, however many others want one.
    pub(crate) fn keep(&self) {
        if let Some((unauthenticated, id)) = &self.unauthenticated {
            unauthenticated.remove(*id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.keep();
    }
}

/// What closes each connection that has not authenticated, in the order of their coming.
#[derive(Debug, Default)]
struct Unauthenticated(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

impl Unauthenticated {
    fn with<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, close: CancellationToken) -> u64 {
        self.with(|queue| {
            let id = queue.next_id;
            queue.next_id += 1;
            queue.connections.insert(id, close);
            id
        })
    }

    fn remove(&self, id: u64) {
        self.with(|queue| queue.connections.remove(&id));
    }

    fn close_oldest(&self) {
        if let Some((_, close)) = self.with(|queue| queue.connections.pop_first()) {
            close.cancel();
        }
    }
}

/// Half of the descriptors are left to the shims.
fn places(wanted: usize, descriptors: Option<u64>) -> usize {
    let most = descriptors.and_then(|count| usize::try_from(count / 4).ok());
    wanted
        .min(most.unwrap_or(usize::MAX))
        .clamp(1, Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_together_take_half_of_the_descriptors_at_most() {
        assert_eq!(places(512, Some(65_536)), 512);
        assert_eq!(places(512, Some(1024)), 256);
        assert_eq!(places(512, None), 512);
        assert_eq!(places(usize::MAX, None), Semaphore::MAX_PERMITS);
        assert_eq!(places(0, Some(3)), 1);
    }
}
