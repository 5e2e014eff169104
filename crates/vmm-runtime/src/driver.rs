use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::workers::Workers;

/// As many operations may wait for the disk at once.
const DISK_THREADS: usize = 4;

/// The threads that belong to a VMM runtime, one of them with a tokio runtime of its own: what it
/// has begun goes on however the caller's is driven, blocked or dropped.
///
/// All are started at once, so that no operation fails later for want of a thread.
#[derive(Debug)]
pub(crate) struct Driver {
    handle: Handle,
    /// For what reads and writes the records of boxes.
    pub(crate) disk: Workers,
    /// For searches of the process table, which can take seconds.
    pub(crate) cleanup: Workers,
    /// For the directories of removed boxes, whose contents are the payload's.
    pub(crate) removal: Workers,
    /// The thread ends with this, whatever is still to be done.
    _stop: DropGuard,
}

impl Driver {
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

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}
