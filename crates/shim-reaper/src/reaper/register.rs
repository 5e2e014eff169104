use std::io;
use std::sync::Arc;

use super::ShimReaper;
use crate::child::sealed::Reaper;
use crate::shim::Role;
use crate::{ChildProcess, ProcessRef, RegisterError, ShimHandle, SpawnCommand, SpawnOptions};

impl ShimReaper {
    /// Spawns a shim: creates the child, which executes the program, and registers it.
    ///
    /// Use the [`Command`](crate::Command) of this crate, on Linux 5.4 or later: the system call that
    /// creates the child also returns its pidfd. From Linux 6.15 on, no foreign wait can then take the exit
    /// status away from the reaper. Commands of std and tokio are [accepted too](SpawnCommand).
    ///
    /// Like the `spawn` of tokio, the call blocks the calling thread until the child executes the program.
    /// If the command sets a parent death signal, the kernel sends it when *that thread* exits
    /// (`PR_SET_PDEATHSIG(2const)`).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sh").args(["-c", "exit 3"]))?;
    /// assert_eq!(shim.await?.code(), Some(3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Commands of std and tokio
    ///
    /// std forks, because the child opens its own pidfd before it executes the program: see
    /// [`ReaperBuilder::early_pidfd`](crate::ReaperBuilder::early_pidfd). If a
    /// [`pre_exec`](std::os::unix::process::CommandExt::pre_exec) closure of the command closes the
    /// descriptors of the child, that fails, and a foreign wait can hide the exit status of a child that
    /// exits at once.
    ///
    /// The child joins the process group of [`SpawnOptions`] after the `pre_exec` closures of the command
    /// have run; with 0 it creates its group before, as in std.
    ///
    /// A command that is passed as `&mut` keeps what the reaper has added to it: the process group of
    /// [`SpawnOptions`], except one that the child joins as above, and with an early pidfd a `pre_exec`
    /// closure *for each spawn*, because std cannot remove one. A closure of an earlier spawn does nothing.
    /// It takes about 100 bytes until the command is dropped, and makes std fork whenever it spawns the
    /// command again. Create a new command for each spawn where there are thousands.
    ///
    /// # Errors
    ///
    /// Returns the error of the `spawn` of the command, or after a shutdown an error that contains
    /// [`ReaperClosed`](crate::ReaperClosed). No process is left behind in either case. The error of a
    /// [`Command`](crate::Command) contains a [`SpawnError`](pidfd_spawn::SpawnError), which names the
    /// step that failed.
    ///
    /// std itself panics if it cannot set the user, the groups, the process group or, together with one of
    /// these, the working directory that a command asks for, or a `pre_exec` closure of the command fails,
    /// *and* another wait has reaped that child. This function catches the panic, after the panic hook has run, and returns an error of the kind
    /// [`Other`](io::ErrorKind::Other). A program that is built with `panic = "abort"` ends. A
    /// [`Command`](crate::Command) of this crate never panics.
    pub fn spawn(&self, command: impl SpawnCommand) -> io::Result<ShimHandle> {
        self.spawn_with(command, SpawnOptions::new())
    }

    /// Spawns a shim with options, otherwise like [`spawn`](Self::spawn).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper, SpawnOptions};
    ///
    /// let reaper = ShimReaper::start();
    /// let options = SpawnOptions::new().process_group(0);
    /// let shim = reaper.spawn_with(Command::new("sh").args(["-c", "sleep 60; :"]), options)?;
    /// let exit = shim.kill_group().await?; // The shell and its `sleep`.
    /// assert_eq!(exit.signal(), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`spawn`](Self::spawn).
    pub fn spawn_with(
        &self,
        mut command: impl SpawnCommand,
        options: SpawnOptions,
    ) -> io::Result<ShimHandle> {
        let worker = self.live_worker();
        let kill_on_drop = options.kill_on_drop || command.kills_on_drop();
        let command = command.as_command();
        let (shim, pipes) = worker.shared().spawn(command, options.process_group)?;
        Ok(ShimHandle::with_pipes(
            shim,
            Arc::clone(worker),
            pipes,
            kill_on_drop,
        ))
    }

    /// Registers a child process by [pid or pidfd](ProcessRef), while its owner may still hold its
    /// `Child`. If no code waits for the child, use [`register_child`](Self::register_child): it needs no
    /// grace period.
    ///
    /// When the process exits, the handle resolves at once, and the owner has the
    /// [grace period](crate::ReaperBuilder::owner_grace) to wait for it and get its status. After that the
    /// reaper reaps it.
    ///
    /// If the process is already registered, this returns another handle to the same shim. If no
    /// process has this pid, or it is not a child of this process, the handle resolves to an exit
    /// without a status; use [`attach`](Self::attach) to observe a process that is not a child.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().owner_grace(Duration::from_secs(60)).start();
    /// let mut child = std::process::Command::new("true").spawn()?;
    ///
    /// let shim = reaper.register(child.id())?;
    /// assert!(shim.await?.success());
    /// assert!(child.wait()?.success()); // The owner gets the status too.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`RegisterError`] if the pid is 0, the pid of this process or above `i32::MAX`, if the
    /// descriptor is not a pidfd, and after a shutdown.
    pub fn register(&self, process: impl ProcessRef) -> Result<ShimHandle, RegisterError> {
        self.register_as(process, Role::Shared)
    }

    /// Registers a [child](ChildProcess), and takes ownership of it and its pipes. The reaper reaps it
    /// when it exits.
    ///
    /// Use [`spawn`](Self::spawn) where you can. A child of `pidfd-spawn` comes with its pidfd; for the
    /// other types the reaper opens one, and a foreign wait that comes before it hides the exit status.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::start();
    /// let child = tokio::process::Command::new("true").spawn()?;
    /// let shim = reaper.register_child(child)?;
    /// assert!(shim.await?.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Children of tokio
    ///
    /// The child does not depend on its tokio runtime any more. `kill_on_drop` has no effect until
    /// the reaper shuts down: it then drops the `Child` of a process that still runs. tokio kills the
    /// process if `kill_on_drop` is set, and waits for it in any case, as long as a tokio runtime runs.
    /// The reaper does not wait for its exit: its handles resolve to
    /// [`ReaperClosed`](crate::ReaperClosed), and the report lists it as still running.
    ///
    /// tokio knows a child by its pid only, so the reaper reaps it through its `Child`. If a foreign
    /// wait comes first, the reaper leaks that `Child` and its descriptor, because dropping it could signal,
    /// or wait for, another process that has got the pid.
    ///
    /// # Errors
    ///
    /// Returns [`RegisterError`] after a shutdown, and for a child of tokio that has been waited for.
    /// [`RegisterError::into_child`] returns the child.
    pub fn register_child<C: ChildProcess>(
        &self,
        child: C,
    ) -> Result<ShimHandle, RegisterError<C>> {
        let worker = self.live_worker();
        let adopted = child.adopt(Reaper(worker.shared()))?;
        let worker = Arc::clone(worker);
        Ok(ShimHandle::with_pipes(
            adopted.shim,
            worker,
            adopted.pipes,
            false,
        ))
    }

    /// Registers a process that is not a child of this process, such as a shim that a previous run
    /// of the daemon started. The reaper observes its exit, but never waits for it.
    ///
    /// The handle resolves when the process has exited. It has the exit status if the kernel reports
    /// it: from `/proc`, while the process is a zombie that this process may inspect
    /// (`proc_pid_stat(5)`, field 52), and on Linux 6.15 and later also after its parent has reaped
    /// it.
    ///
    /// Do not attach to a child of this process, because the reaper does not reap it then; use
    /// [`register`](Self::register).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{ReapedBy, ShimReaper, Signal};
    ///
    /// # let script = "sleep 60 > /dev/null 2>&1 & echo $!";
    /// # let output = std::process::Command::new("sh").args(["-c", script]).output()?;
    /// # let pid_file = String::from_utf8(output.stdout)?;
    /// let pid: u32 = pid_file.trim().parse()?; // Of a shim that an earlier run started.
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.attach(pid)?;
    /// shim.send_signal(Signal::SIGKILL)?;
    /// assert_eq!(shim.await?.reaped_by, ReapedBy::Observed);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`register`](Self::register).
    pub fn attach(&self, process: impl ProcessRef) -> Result<ShimHandle, RegisterError> {
        self.register_as(process, Role::Attached)
    }

    fn register_as(
        &self,
        process: impl ProcessRef,
        role: Role,
    ) -> Result<ShimHandle, RegisterError> {
        let worker = self.live_worker();
        let process = process
            .into_process()
            .map_err(|kind| RegisterError::new(0, kind))?;
        let (pid, pidfd) = (process.pid, process.pidfd);
        let shim = worker.shared().register_process(pid, pidfd, role)?;
        Ok(ShimHandle::new(shim, Arc::clone(worker)))
    }

    /// Returns the pids of the registered processes, sorted. Those that are dead and in the grace period of
    /// their owner are among them.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert_eq!(reaper.registered(), [shim.id()]);
    ///
    /// shim.kill().await?;
    /// assert!(reaper.registered().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn registered(&self) -> Vec<u32> {
        self.worker().shared().directory.pids()
    }
}
