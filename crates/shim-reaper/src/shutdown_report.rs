/// What a shutdown found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Shims whose exit the final drain settled.
    pub drained: u64,
    /// Pids of the registered shims that still run, sorted. Nobody collects them any more.
    pub still_running: Vec<u32>,
}
