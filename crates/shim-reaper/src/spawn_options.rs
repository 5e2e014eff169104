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
    /// Make the shim the leader of a new process group. When the shim has ended, the reaper also
    /// reaps the orphans in that group which this process adopts, as a subreaper
    /// (`PR_SET_CHILD_SUBREAPER`) or as pid 1 of a container. Off by default.
    ///
    /// Nothing in the group is reaped while the shim lives, if this process adopts no orphans, or
    /// if it is registered with this reaper.
    ///
    /// The kernel does not record whether a child was adopted or forked. A child that you put into
    /// the group yourself, such as a process of a pipeline, is not touched if a thread other than
    /// the main thread forked it: the main thread adopts all orphans while it lives. One that the
    /// main thread forked, or any thread where that cannot be told (the main thread has ended, or
    /// the kernel lacks `CONFIG_PROC_CHILDREN`), is reaped like an orphan if nobody has waited for
    /// it within the [grace period](crate::ReaperBuilder::owner_grace), at least one sweep interval,
    /// after its end. Register it if its owner may take longer.
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
