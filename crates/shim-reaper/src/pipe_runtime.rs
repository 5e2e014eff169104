use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::thread::spawn_thread;

/// A tokio runtime on a thread of its own, for pipes that a caller outside of tokio takes while the
/// reaper has no tokio runtime. The first such pipe starts it; it ends when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct PipeRuntime(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    handle: Handle,
    _stop: DropGuard,
}

impl PipeRuntime {
    pub(crate) fn start(&self) -> io::Result<Handle> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            return Ok(running.handle.clone());
        }
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone();
        spawn_thread(move || runtime.block_on(stopped.cancelled()))?;
        *running = Some(Running {
            handle: handle.clone(),
            _stop: stop.drop_guard(),
        });
        Ok(handle)
    }
}
