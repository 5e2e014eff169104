/// Options of [`ShimReaper::spawn_with`](crate::ShimReaper::spawn_with): what to do when the handle is
/// dropped, and the process group.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use shim_reaper::{Command, ShimReaper};
/// # use shim_reaper::SpawnOptions;
/// # let reaper = ShimReaper::start();
///
/// let options = SpawnOptions::new().kill_on_drop(true).process_group(0);
/// let shim = reaper.spawn_with(Command::new("sleep").arg("60"), options)?;
/// drop(shim); // Kills it, and what it may have started.
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpawnOptions {
    /// Whether to send SIGKILL to the shim when the last handle of this spawn is dropped. If the shim has a
    /// [group](crate::ShimHandle::send_group_signal), the signal goes to the group, once, even if the shim
    /// has ended by then. The reaper still reaps the shim. Off by default.
    pub kill_on_drop: bool,
    /// The process group that the shim joins, as in
    /// [`std::os::unix::process::CommandExt::process_group`]. With 0 it leads a new group, whose number is
    /// its pid. With `None`, the default, the command decides; a group that the command itself creates
    /// does not count as the group of the shim.
    ///
    /// # A shim that leads a group
    ///
    /// [`ShimHandle::kill_group`](crate::ShimHandle::kill_group),
    /// [`ShimReaper::stop_all`](crate::ShimReaper::stop_all) and
    /// [`kill_on_drop`](Self::kill_on_drop) signal every process in the group. The pidfd of the shim stays
    /// open as long as it has a handle, because it identifies the group after the end of the shim.
    ///
    /// After the end of the shim, the reaper also reaps the orphans in the group that the kernel
    /// reparents to this process. The kernel does that if this process is a subreaper
    /// (`PR_SET_CHILD_SUBREAPER(2const)`) or pid 1 of a container. The reaper does not reap them while the
    /// shim runs, and never reaps a process that is registered with it.
    ///
    /// A child that you put into the group yourself, such as a process of a pipeline, may look like an
    /// orphan: [`ReaperBuilder::subreaper`](crate::ReaperBuilder::subreaper) lists the cases. The reaper reaps
    /// it if its owner does not wait for it within the
    /// [grace period](crate::ReaperBuilder::owner_grace) (at least one sweep interval) after its
    /// exit. Register it if its owner may take longer.
    pub process_group: Option<i32>,
}

impl SpawnOptions {
    /// Creates options with the defaults: the shim is not killed when its handle is dropped, and the
    /// command decides on the process group.
    ///
    /// ```
    /// # use shim_reaper::SpawnOptions;
    /// let options = SpawnOptions::new();
    /// assert_eq!((options.kill_on_drop, options.process_group), (false, None));
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`kill_on_drop`](Self::kill_on_drop).
    ///
    /// ```
    /// # use shim_reaper::SpawnOptions;
    /// assert!(SpawnOptions::new().kill_on_drop(true).kill_on_drop);
    /// ```
    #[must_use]
    pub fn kill_on_drop(mut self, on: bool) -> Self {
        self.kill_on_drop = on;
        self
    }

    /// Sets [`process_group`](Self::process_group).
    ///
    /// ```
    /// # use shim_reaper::SpawnOptions;
    /// assert_eq!(SpawnOptions::new().process_group(0).process_group, Some(0));
    /// ```
    #[must_use]
    pub fn process_group(mut self, pgroup: i32) -> Self {
        self.process_group = Some(pgroup);
        self
    }
}
