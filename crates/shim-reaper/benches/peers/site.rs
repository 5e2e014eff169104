use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::{Pid, gettid};
use tokio::runtime::{Builder, Runtime};

use crate::clock;

/// The same for every peer that lives in a runtime.
const WORKERS: usize = 2;

/// A runtime of one peer's own, and the processor time of its threads.
pub(crate) struct Site {
    runtime: Runtime,
    threads: Arc<Mutex<Vec<Pid>>>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let threads = Arc::new(Mutex::new(Vec::new()));
        let started = Arc::clone(&threads);
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .on_thread_start(move || started.lock().unwrap().push(gettid()))
            .build()
            .unwrap();
        Self { runtime, threads }
    }

    /// On the calling thread, which is none of the workers.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// On a worker.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.block_on(self.runtime.spawn(future)).unwrap()
    }

    pub(crate) fn cpu(&self) -> Duration {
        let threads = self.threads.lock().unwrap();
        threads.iter().map(|id| clock::of_thread(*id)).sum()
    }
}
