use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The thread that belongs to a VMM runtime, with a tokio runtime of its own: what it has begun
/// goes on however the caller's is driven, blocked or dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    handle: Handle,
    /// The thread ends with this, whatever is still to be done.
    _stop: DropGuard,
}

impl Driver {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("vmm-disk")
            .build()?;
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
            _stop: stop.drop_guard(),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}
