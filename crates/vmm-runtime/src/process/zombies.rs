use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use shim_reaper::ShimHandle;

use super::reap_wait::is_own_zombie;

/// Counts the shims that have exited and are not reaped. The cost depends on their number only, and
/// the count is right also if the reaper does not work.
#[derive(Debug)]
pub(crate) struct ZombieCounter {
    /// Reports the shims that have exited. Contains no shim that is reaped, because the reaper then
    /// closes its pidfd. `None` if it cannot be created.
    epoll: Option<OwnedFd>,
    /// The shims that the epoll does not watch, for lack of pidfds or of descriptors.
    unwatched: Mutex<Vec<ShimHandle>>,
}

impl ZombieCounter {
    pub(crate) fn new() -> Self {
        Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).ok(),
            unwatched: Mutex::default(),
        }
    }

    /// Adds a shim, until it is reaped.
    pub(crate) fn watch(&self, shim: &ShimHandle) {
        match self.add_to_epoll(shim) {
            Ok(()) => {}
            // It is reaped.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
            Err(_) => {
                let mut unwatched = self.unwatched();
                if unwatched.len() == unwatched.capacity() {
                    unwatched.retain(ShimHandle::is_running);
                }
                unwatched.push(shim.clone());
            }
        }
    }

    fn add_to_epoll(&self, shim: &ShimHandle) -> io::Result<()> {
        let epoll = self.epoll.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        // The epoll watches the pidfd until its last duplicate is closed, epoll(7): the clone closes
        // one at the end of this function, the reaper another when it has reaped the shim.
        let shim = shim.clone();
        let data = epoll::EventData::new_u64(shim.id().into());
        epoll::add(epoll, shim.pidfd()?, data, epoll::EventFlags::IN)?;
        Ok(())
    }

    /// Returns the number of zombies among the shims. `watched` is at least the number of shims that
    /// are not reaped.
    pub(crate) fn count(&self, watched: u64) -> u64 {
        let mut exited = Vec::with_capacity(usize::try_from(watched).unwrap_or(0).max(1));
        if let Some(epoll) = &self.epoll {
            // Interrupted by a signal only while it waits.
            let _ = epoll::wait(
                epoll,
                spare_capacity(&mut exited),
                Some(&Timespec::default()),
            );
        }
        let exited = exited.iter().filter_map(|event| {
            let data = event.data;
            u32::try_from(data.u64()).ok()
        });
        let mut unwatched = self.unwatched();
        unwatched.retain(ShimHandle::is_running);
        let unwatched = unwatched.iter().map(ShimHandle::id);
        // A forked child keeps the pidfds of reaped shims open.
        exited
            .chain(unwatched)
            .filter(|pid| is_own_zombie(*pid))
            .count() as u64
    }

    fn unwatched(&self) -> MutexGuard<'_, Vec<ShimHandle>> {
        self.unwatched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread;

    use shim_reaper::ShimReaper;

    use super::*;

    #[test]
    fn a_shim_that_the_reaper_does_not_reap_is_counted() {
        for has_epoll in [true, false] {
            let counter = ZombieCounter {
                epoll: ZombieCounter::new().epoll.filter(|_| has_epoll),
                unwatched: Mutex::default(),
            };
            // Nothing drives this tokio runtime, so that the reaper does nothing.
            let tokio = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let reaper = ShimReaper::builder().start_on(tokio.handle());
            let spawn = |program: &str| {
                let mut command = Command::new(program);
                command.stdin(Stdio::piped());
                let shim = reaper.spawn(command).unwrap();
                counter.watch(&shim);
                shim
            };
            let (dead, alive) = (spawn("true"), spawn("cat"));
            while !is_own_zombie(dead.id()) {
                thread::yield_now();
            }
            assert_eq!(counter.count(2), 1);
            assert!(!is_own_zombie(alive.id()));
            alive.start_kill().unwrap();
            while counter.count(2) < 2 {
                thread::yield_now();
            }
            reaper.shutdown_sync();
            assert_eq!(counter.count(2), 0);
        }
    }
}
