use std::sync::Arc;
use std::time::Duration;

use crate::group::{Group, GroupError};
use crate::handle::ShimHandle;
use crate::kernel::{Linux, ProcessTable};
use crate::{ShimExit, Signal, stop};

/// Signals for the group of the shim: the control group in which it was
/// [created](crate::Command::cgroup), if there is one, else the process group that it
/// [leads](crate::SpawnOptions::process_group).
impl ShimHandle {
    /// Sends a signal to every process in the group of the shim, once. It also works after the shim
    /// has ended, and after the reaper has shut down. To end the group, use
    /// [`stop_group`](Self::stop_group) or [`kill_group`](Self::kill_group), which wait and repeat.
    ///
    /// | group | kernel | how |
    /// |---|---|---|
    /// | control group, SIGKILL | Linux 5.14 | `cgroup.kill`, which also reaches the groups below it |
    /// | control group | any | to each process in `cgroup.procs`, by its pidfd |
    /// | process group | Linux 6.9 | by the pidfd of the shim: `PIDFD_SIGNAL_PROCESS_GROUP` |
    /// | process group | before 6.9 | `kill(2)` with the negative pid, only while the shim runs |
    ///
    /// Another group never gets the signal. A pidfd refers to the group of the shim also after the shim
    /// has been reaped and its pid is recycled. Before Linux 6.9, the kernel cannot give the number
    /// of the group to another one while the shim has not been reaped, and the handle does not use
    /// the number after that.
    ///
    /// A process that is forked in the meantime, or joins the group, may not get the signal, except
    /// that SIGKILL to a process group, or by `cgroup.kill`, also ends the forks in flight.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::{Signal, SpawnOptions};
    /// # let reaper = ShimReaper::start();
    ///
    /// let options = SpawnOptions::new().process_group(0);
    /// let shim = reaper.spawn_with(Command::new("sh").args(["-c", "sleep 60; :"]), options)?;
    /// shim.send_group_signal(Signal::SIGTERM)?;
    /// assert_eq!(shim.await?.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`NoGroup`](GroupError::NoGroup) if the shim has no group of its own,
    /// [`Empty`](GroupError::Empty) if no process is left in it,
    /// [`Unidentified`](GroupError::Unidentified) for a process group before Linux 6.9 if the shim
    /// has ended, and [`Denied`](GroupError::Denied) if no process in it may be signalled.
    pub fn send_group_signal(&self, signal: Signal) -> Result<(), GroupError> {
        self.group()?.signal(signal)
    }

    /// Sends SIGKILL to every process in the [group](Self::send_group_signal) of the shim, repeats it
    /// until the group has no process but zombies, and returns the exit of the shim. It also kills the
    /// shim if that has left its group, and the rest of the group if the shim has ended.
    ///
    /// It repeats the signal because a process can join the group after it: with `setpgid(2)`, or
    /// because it is moved into the control group. It waits by the pidfds of the processes, or for
    /// `populated 0` in `cgroup.events`. It also kills other shims that have been created in the
    /// control group, and this process if that is in the group.
    ///
    /// Create the next shim in a new control group: on Linux 6.18, a child that is
    /// [created](crate::Command::cgroup) in a group after a `cgroup.kill` is killed too.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper, SpawnOptions};
    ///
    /// let reaper = ShimReaper::start();
    /// let mut shim = Command::new("sh");
    /// shim.args(["-c", "sleep 60 & sleep 60"]);
    ///
    /// let options = SpawnOptions::new().process_group(0);
    /// let exit = reaper.spawn_with(shim, options)?.kill_group().await?;
    /// assert_eq!(exit.signal(), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send_group_signal`](Self::send_group_signal), but an empty group is not an error.
    /// Returns [`Denied`](GroupError::Denied) as soon as it finds a process that may not be
    /// signalled, [`StillRunning`](GroupError::StillRunning) if one has not exited after 5 seconds,
    /// and [`Closed`](GroupError::Closed) if the reaper shuts down before the exit of the shim is
    /// known.
    ///
    /// # Cancel safety
    ///
    /// Once the future has been polled, a thread of its own does all this, even if the future is dropped. If
    /// no thread can be started, the future blocks the calling thread.
    pub async fn kill_group(&self) -> Result<ShimExit, GroupError> {
        self.run_on_thread(|handle| {
            let kernel = handle.kernel();
            handle
                .group()?
                .kill(stop::after(kernel, stop::KILL_TIMEOUT))
        })
        .await
    }

    /// Stops the [group](Self::send_group_signal) of the shim: sends SIGTERM and SIGCONT to every process
    /// in it, waits for up to `grace` until it has no process but zombies, and then does what
    /// [`kill_group`](Self::kill_group) does. Returns the exit of the shim.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::SpawnOptions;
    /// # use std::time::Duration;
    /// # let reaper = ShimReaper::start();
    ///
    /// let options = SpawnOptions::new().process_group(0);
    /// let shim = reaper.spawn_with(Command::new("sh").args(["-c", "sleep 60; :"]), options)?;
    /// let exit = shim.stop_group(Duration::from_secs(10)).await?;
    /// assert_eq!(exit.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`kill_group`](Self::kill_group).
    ///
    /// # Cancel safety
    ///
    /// As for [`kill_group`](Self::kill_group).
    pub async fn stop_group(&self, grace: Duration) -> Result<ShimExit, GroupError> {
        self.run_on_thread(move |handle| {
            let kernel = handle.kernel();
            let mut group = handle.group()?;
            // Finds the members while the shim runs, which before Linux 6.9 proves that they are.
            group.await_empty(kernel.now())?;
            match group.signal(Signal::SIGTERM) {
                Ok(()) | Err(GroupError::Empty { .. }) => {}
                Err(error) => return Err(error),
            }
            // Fails if the shim has just ended.
            let _ = group.signal(Signal::SIGCONT);
            group.await_empty(stop::after(kernel, grace))?;
            // Also what the wait has not seen, because it forks and exits.
            group.kill(stop::after(kernel, stop::KILL_TIMEOUT))
        })
        .await
    }

    /// Runs blocking code on a thread, and returns the exit of the shim.
    async fn run_on_thread(
        &self,
        run: impl Fn(&Self) -> Result<(), GroupError> + Send + Sync + 'static,
    ) -> Result<ShimExit, GroupError> {
        self.group()?;
        // Without the pipes and the option `kill_on_drop`.
        let handle = Self::new(Arc::clone(&self.shim), Arc::clone(&self.worker));
        stop::run_on_thread(self.kernel(), move || run(&handle)).await?;
        Ok(self.wait().await?)
    }

    fn group(&self) -> Result<Group<'_, Linux>, GroupError> {
        let pid = self.id();
        Group::of(self.kernel(), &self.shim).ok_or(GroupError::NoGroup { pid })
    }

    fn kernel(&self) -> &Linux {
        &self.worker.shared().kernel
    }
}
