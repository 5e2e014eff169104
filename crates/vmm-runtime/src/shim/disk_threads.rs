use crate::workers::Workers;

/// The threads on which a start of a shim accesses the files of its box.
#[derive(Clone, Debug)]
pub(super) enum DiskThreads {
    /// Those of a VMM runtime.
    Workers(Workers),
    /// The blocking threads of the current tokio runtime.
    Tokio,
}

impl DiskThreads {
    /// Runs `work` on one of the threads. Returns `None` if it panics, or if its runtime shuts down
    /// first.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match self {
            Self::Workers(workers) => workers.run(work).await.ok(),
            Self::Tokio => tokio::task::spawn_blocking(work).await.ok(),
        }
    }
}
