/// Options of [`ShimReaper::spawn_with`](crate::ShimReaper::spawn_with).
///
/// ```
/// use shim_reaper::SpawnOptions;
///
/// let options = SpawnOptions::new().kill_on_drop(true).process_group(0);
/// assert_eq!((options.kill_on_drop, options.process_group), (true, Some(0)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpawnOptions {
    /// Whether to send SIGKILL to the shim when the last handle of this spawn is dropped, and once to
    /// its [group](crate::ShimHandle::send_group_signal) if it has one, even if the shim has ended by
    /// then. The reaper still reaps the shim. Off by default.
    pub kill_on_drop: bool,
    /// The process group that the shim joins, as in
    /// [`std::os::unix::process::CommandExt::process_group`]. With 0 it leads a new group, which has
    /// its pid as number. With `None`, the default, the command decides; the groups that a command
    /// creates by itself do not count as the group of the shim.
    ///
    /// A shim that leads a group is stopped with it:
    /// [`ShimHandle::kill_group`](crate::ShimHandle::kill_group),
    /// [`ShimReaper::stop_all`](crate::ShimReaper::stop_all) and
    /// [`kill_on_drop`](Self::kill_on_drop) signal every process in the group. Its pidfd stays open as
    /// long as it has a handle, because it identifies the group after the end of the shim.
    ///
    /// When a shim that leads a group has ended, the reaper also reaps the orphans in that group that
    /// the kernel reparents to this process, which it does if this process is a subreaper
    /// (`PR_SET_CHILD_SUBREAPER`) or pid 1 of a container.
    ///
    /// The reaper reaps nothing in the group while the shim runs, or if this process is neither a
    /// subreaper nor pid 1. It never reaps a process in the group that is registered with this
    /// reaper.
    ///
    /// The kernel does not record whether this process forked a child or became its parent later.
    /// A child that you put into the group yourself, such as a process of a pipeline, looks like an
    /// orphan in these cases:
    ///
    /// * The main thread forked it. The kernel reparents all orphans to the main thread as long as
    ///   that runs.
    /// * Another thread forked it, and exited before an interval sweep after the end of the shim
    ///   saw the child. The kernel reparents the children of a thread that exits to the main thread.
    /// * The main thread has exited, or the kernel lacks `CONFIG_PROC_CHILDREN`.
    ///
    /// The reaper reaps such a child if its owner does not wait for it within the
    /// [grace period](crate::ReaperBuilder::owner_grace) (at least one sweep interval) after its
    /// exit. Register it if its owner may take longer.
    pub process_group: Option<i32>,
}

impl SpawnOptions {
    /// Creates options with the defaults.
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
    pub fn process_group(mut self, pgroup: i32) -> Self {
        self.process_group = Some(pgroup);
        self
    }
}
