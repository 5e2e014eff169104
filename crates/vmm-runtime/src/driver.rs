use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::workers::Workers;

/// The number of disk operations that can run at once.
const DISK_THREADS: usize = 4;

/// The threads of a VMM runtime. One of them drives a private tokio runtime, so operations make
/// progress even if the caller's tokio runtime is blocked or dropped.
///
/// All threads start at once, so that no operation fails later because a thread cannot be created.
#[derive(Debug)]
pub(crate) struct Driver {
    handle: Handle,
    /// Read and write the files of boxes, and read single processes from `/proc`.
    pub(crate) disk: Workers,
    /// Searches the process table, which can take seconds.
    pub(crate) cleanup: Workers,
    /// Removes the directories of removed boxes, whose contents the payload chose.
    pub(crate) removal: Workers,
    /// Stops the private tokio runtime when dropped, even with tasks pending.
    _stop: DropGuard,
}

impl Driver {
    /// Starts all threads.
    pub(crate) fn start() -> io::Result<Self> {
        let disk = Workers::start("vmm-disk", DISK_THREADS)?;
        let cleanup = Workers::start("vmm-cleanup", 1)?;
        let removal = Workers::start("vmm-removal", 1)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        thread::Builder::new()
            .name("vmm-runtime".to_owned())
            .spawn(move || {
                runtime.block_on(stopped.cancelled());
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            disk,
            cleanup,
            removal,
            _stop: stop.drop_guard(),
        })
    }

    /// Returns the handle of the private tokio runtime.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}
