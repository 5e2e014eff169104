/// How [`ShimReaper::spawn_with`](crate::ShimReaper::spawn_with) starts and keeps a shim.
///
/// ```
/// use shim_reaper::SpawnOptions;
///
/// let options = SpawnOptions::new().kill_on_drop(true).process_group(true);
/// assert!(options.kill_on_drop && options.process_group);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpawnOptions {
    /// Send SIGKILL when the last handle that came from the spawn is dropped. The reaper collects
    /// the shim as always. Off by default.
    pub kill_on_drop: bool,
    /// Make the shim the leader of a new process group, and collect members of that group that
    /// outlive it and fall to this process, as its orphans do to a subreaper
    /// (`PR_SET_CHILD_SUBREAPER`) or to pid 1 of a container. Off by default.
    pub process_group: bool,
}

impl SpawnOptions {
    /// Everything off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`kill_on_drop`](Self::kill_on_drop).
    #[must_use]
    pub fn kill_on_drop(mut self, on: bool) -> Self {
        self.kill_on_drop = on;
        self
    }

    /// Sets [`process_group`](Self::process_group).
    #[must_use]
    pub fn process_group(mut self, on: bool) -> Self {
        self.process_group = on;
        self
    }
}
