use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::access::Access;

/// How many connections there may be: so many to the owner's sockets, and as many for strangers,
/// who do not shut the owner out.
#[derive(Debug)]
pub(crate) struct Room {
    owner: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Room {
    pub(crate) fn new(connections: usize) -> Self {
        let places = places(connections, getrlimit(Resource::Nofile).current);
        Self {
            owner: Arc::new(Semaphore::new(places)),
            strangers: Arc::new(Semaphore::new(places)),
        }
    }

    /// Waits for one, which lasts until it is dropped.
    pub(crate) async fn place(&self, access: &Access) -> Option<OwnedSemaphorePermit> {
        let places = match access {
            Access::Owner => &self.owner,
            Access::Bearer(_) => &self.strangers,
        };
        // Never closed.
        Arc::clone(places).acquire_owned().await.ok()
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
