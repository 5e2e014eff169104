use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// The tokio runtime that belongs to a VMM runtime: what that has begun goes on however the
/// caller's runtime is driven, blocked or dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Driver {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            // Probes are bound to the thread that starts them: there has to be one only.
            .worker_threads(1)
            .thread_name("vmm-runtime")
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The last to hold it may be one of its own tasks, which must not wait for itself.
            runtime.shutdown_background();
        }
    }
}
