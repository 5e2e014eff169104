use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::access::Access;

/// The connection slots of a server. Unix sockets and TCP have separate slots of equal number, so
/// that TCP clients cannot lock out the owner.
#[derive(Debug)]
pub(crate) struct ConnectionLimits {
    unix: Arc<Semaphore>,
    tcp: Arc<Semaphore>,
    unauthenticated: Arc<Unauthenticated>,
    /// Held while waiting for a TCP slot. Without it, the connection of another listener could take
    /// the slot that was freed for this one.
    tcp_turn: tokio::sync::Mutex<()>,
}

impl ConnectionLimits {
    pub(crate) fn new(connections: usize) -> Self {
        let slots = slot_count(connections, getrlimit(Resource::Nofile).current);
        Self {
            unix: Arc::new(Semaphore::new(slots)),
            tcp: Arc::new(Semaphore::new(slots)),
            unauthenticated: Arc::default(),
            tcp_turn: tokio::sync::Mutex::default(),
        }
    }

    /// Waits for a slot, which is released on drop. When all TCP slots are taken, the oldest
    /// unauthenticated connection is closed, unless the server is shutting down and still has to
    /// serve what that connection has sent. Cancelling `close` closes the connection in the new slot.
    pub(crate) async fn acquire(
        &self,
        access: &Access,
        close: &CancellationToken,
        closing: &CancellationToken,
    ) -> Option<ConnectionSlot> {
        // The semaphores are never closed.
        match access {
            Access::Owner | Access::Application => {
                let permit = Arc::clone(&self.unix).acquire_owned().await.ok()?;
                Some(ConnectionSlot {
                    _permit: permit,
                    unauthenticated: None,
                })
            }
            Access::Bearer(_) => {
                let _turn = self.tcp_turn.lock().await;
                if self.tcp.available_permits() == 0 && !closing.is_cancelled() {
                    self.unauthenticated.close_oldest();
                }
                let permit = Arc::clone(&self.tcp).acquire_owned().await.ok()?;
                let id = self.unauthenticated.add(close.clone());
                Some(ConnectionSlot {
                    _permit: permit,
                    unauthenticated: Some((Arc::clone(&self.unauthenticated), id)),
                })
            }
        }
    }
}

/// The slot that a connection occupies.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    _permit: OwnedSemaphorePermit,
    /// The entry among the unauthenticated connections; `None` at a Unix socket.
    unauthenticated: Option<(Arc<Unauthenticated>, u64)>,
}

impl ConnectionSlot {
    /// Protects the connection from being closed in favor of new ones.
    pub(crate) fn mark_authenticated(&self) {
        if let Some((unauthenticated, id)) = &self.unauthenticated {
            unauthenticated.remove(*id);
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        if let Some((unauthenticated, id)) = &self.unauthenticated {
            unauthenticated.remove(*id);
        }
    }
}

/// The tokens that close unauthenticated connections, oldest first.
#[derive(Debug, Default)]
struct Unauthenticated(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

impl Unauthenticated {
    fn with_queue<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, close: CancellationToken) -> u64 {
        self.with_queue(|queue| {
            let id = queue.next_id;
            queue.next_id += 1;
            queue.connections.insert(id, close);
            id
        })
    }

    fn remove(&self, id: u64) {
        self.with_queue(|queue| queue.connections.remove(&id));
    }

    fn close_oldest(&self) {
        if let Some((_, close)) = self.with_queue(|queue| queue.connections.pop_first()) {
            close.cancel();
        }
    }
}

/// Returns the number of slots per kind of socket. Half of the file descriptors are left to the
/// shims.
fn slot_count(requested: usize, descriptors: Option<u64>) -> usize {
    let max = descriptors.and_then(|count| usize::try_from(count / 4).ok());
    requested
        .min(max.unwrap_or(usize::MAX))
        .clamp(1, Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_use_at_most_half_of_the_descriptors() {
        assert_eq!(slot_count(512, Some(65_536)), 512);
        assert_eq!(slot_count(512, Some(1024)), 256);
        assert_eq!(slot_count(512, None), 512);
        assert_eq!(slot_count(usize::MAX, None), Semaphore::MAX_PERMITS);
        assert_eq!(slot_count(0, Some(3)), 1);
    }
}
