//! The methods that exist only on Unix or Linux.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::command::Command;
use crate::plan::Rlimit;
use crate::resource::Resource;

/// More than any kernel supports.
const MAX_CPUS: usize = 1 << 16;

impl Command {
    /// Sets the user ID, with `setuid(2)`.
    ///
    /// Also drops all supplementary groups, as std does, unless [`groups`](Self::groups) sets them or this
    /// process lacks the privilege (`CAP_SETGID`) to change them.
    ///
    /// The spawn fails with `EPERM` in [`Step::Uid`](crate::Step::Uid) without the privilege
    /// (`CAP_SETUID`). [Other users](crate#other-users) describes how the memory of this process is
    /// protected from that user until the child executes the program.
    ///
    /// ```no_run
    /// # use pidfd_spawn::Command;
    /// // Needs root.
    /// let output = Command::new("id").arg("-u").gid(65534).uid(65534).output()?;
    /// assert_eq!(output.stdout, b"65534\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn uid(&mut self, id: u32) -> &mut Self {
        self.attributes.uid = Some(id);
        self
    }

    /// Sets the group ID, with `setgid(2)`.
    ///
    /// The spawn fails with `EPERM` in [`Step::Gid`](crate::Step::Gid) without the privilege
    /// (`CAP_SETGID`).
    ///
    /// ```no_run
    /// # use pidfd_spawn::Command;
    /// // Needs root.
    /// let output = Command::new("id").arg("-g").gid(65534).output()?;
    /// assert_eq!(output.stdout, b"65534\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn gid(&mut self, id: u32) -> &mut Self {
        self.attributes.gid = Some(id);
        self
    }

    /// Sets the supplementary groups, with `setgroups(2)`. An empty list drops all.
    ///
    /// The spawn fails with `EPERM` in [`Step::Groups`](crate::Step::Groups) without the privilege
    /// (`CAP_SETGID`).
    ///
    /// ```no_run
    /// # use pidfd_spawn::Command;
    /// // Needs root.
    /// let output = Command::new("id").arg("-G").gid(0).groups(&[4, 24]).output()?;
    /// assert_eq!(output.stdout, b"0 4 24\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn groups(&mut self, groups: &[u32]) -> &mut Self {
        self.attributes.groups = Some(groups.to_owned());
        self
    }

    /// Moves the child to the process group `pgroup`, with `setpgid(2)`. With 0 the child creates a group,
    /// whose ID is the pid of the child, and leads it.
    ///
    /// Use it to keep signals of the terminal, such as that of Ctrl-C, from the child, and to signal the
    /// child together with its descendants. With the crate `shim-reaper`, use the option
    /// `process_group` of its `SpawnOptions`, so that the reaper knows the group.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut child = Command::new("sleep").arg("60").process_group(0).spawn()?;
    /// // SAFETY: takes an integer.
    /// let group = unsafe { libc::getpgid(child.id() as libc::pid_t) };
    /// assert_eq!(group, child.id() as libc::pid_t);
    /// # child.kill()?;
    /// # child.wait()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn process_group(&mut self, pgroup: i32) -> &mut Self {
        self.attributes.process_group = Some(pgroup);
        self
    }

    /// Sets whether the child creates a session, and in it a process group, with `setsid(2)`. It then has
    /// no controlling terminal.
    ///
    /// [`process_group(0)`](Self::process_group) changes nothing beside it, and another group has no effect.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut child = Command::new("sleep").arg("60").setsid(true).spawn()?;
    /// // SAFETY: takes an integer.
    /// let session = unsafe { libc::getsid(child.id() as libc::pid_t) };
    /// assert_eq!(session, child.id() as libc::pid_t);
    /// # child.kill()?;
    /// # child.wait()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn setsid(&mut self, setsid: bool) -> &mut Self {
        self.attributes.setsid = setsid;
        self
    }

    /// Sets whether the stdin of the child becomes the controlling terminal of its session (`tty(4)`,
    /// `TIOCSCTTY`), so that Ctrl-C in the terminal sends SIGINT to the child. Use it together with
    /// [`setsid`](Self::setsid), and with the terminal's end of a `pty(7)` as
    /// [`stdin`](Self::stdin).
    ///
    /// The spawn fails in [`Step::ControllingTerminal`](crate::Step::ControllingTerminal): with `ENOTTY`
    /// if the stdin is not a terminal, and with `EPERM` if the child does not lead a session, or if
    /// the terminal belongs to another one.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Step};
    /// let mut command = Command::new("true");
    /// let error = command.setsid(true).controlling_terminal(true).stdin(pidfd_spawn::Stdio::null())
    ///     .spawn()
    ///     .unwrap_err();
    /// assert_eq!(error.step(), Step::ControllingTerminal);
    /// ```
    pub fn controlling_terminal(&mut self, controlling_terminal: bool) -> &mut Self {
        self.attributes.controlling_terminal = controlling_terminal;
        self
    }

    /// Creates the child in the control group of this directory. Call it once for each hierarchy of
    /// `cgroups(7)` in which the child is to be in a group: version 1 has several.
    ///
    /// The child is in the group from its first instruction (`CLONE_INTO_CGROUP`, Linux 5.7). On an older
    /// kernel, and for directories of version 1, it moves itself there before all other steps.
    ///
    /// The spawn blocks while the group is frozen. If the group, or one above it, has `memory.oom.group`
    /// set, the child [is forked](crate#when-the-child-is-forked).
    ///
    /// ```no_run
    /// # use std::fs::File;
    /// let group = File::open("/sys/fs/cgroup/my-service")?;
    /// let child = pidfd_spawn::Command::new("worker").cgroup(group).spawn()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn cgroup(&mut self, dir: impl Into<OwnedFd>) -> &mut Self {
        self.attributes.cgroups.push(dir.into());
        self
    }

    /// Returns the directories of the control groups that [`cgroup`](Self::cgroup) has set.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// assert_eq!(Command::new("true").get_cgroups().len(), 0);
    /// ```
    pub fn get_cgroups(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.attributes.cgroups.iter().map(AsFd::as_fd)
    }

    /// Sets the soft and the hard limit of a resource, in the unit of the [`Resource`].
    /// [`u64::MAX`] means unlimited.
    ///
    /// The child sets limits before the user ID, so that a privileged process can raise them for another
    /// user. The last call for a resource wins.
    ///
    /// The spawn fails in [`Step::Rlimit`](crate::Step::Rlimit): with `EPERM` if the hard limit is above
    /// that of this process and the privilege (`CAP_SYS_RESOURCE`) is missing, with `EINVAL` if the soft
    /// limit is above the hard one (`getrlimit(2)`).
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Resource};
    /// let mut command = Command::new("sh");
    /// command.args(["-c", "ulimit -c"]).rlimit(Resource::Core, 0, 0);
    /// assert_eq!(command.output()?.stdout, b"0\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn rlimit(&mut self, resource: Resource, soft: u64, hard: u64) -> &mut Self {
        let rlimits = &mut self.attributes.rlimits;
        rlimits.retain(|set| set.resource != resource);
        rlimits.push(Rlimit {
            resource,
            soft,
            hard,
        });
        self
    }

    /// Sets the CPUs on which the child may run, by number from 0, with `sched_setaffinity(2)`.
    ///
    /// The kernel ignores CPUs that do not exist. The spawn fails with `EINVAL` in
    /// [`Step::Affinity`](crate::Step::Affinity) if none of them exists.
    ///
    /// ```no_run
    /// # use pidfd_spawn::Command;
    /// // Fails in a container that may not use CPU 0.
    /// let output = Command::new("nproc").affinity([0]).output()?;
    /// assert_eq!(output.stdout, b"1\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn affinity(&mut self, cpus: impl IntoIterator<Item = usize>) -> &mut Self {
        let mut mask = Vec::new();
        // The kernel too ignores numbers of CPUs that it cannot have.
        for cpu in cpus.into_iter().filter(|&cpu| cpu < MAX_CPUS) {
            let word = cpu / usize::BITS as usize;
            if mask.len() <= word {
                mask.resize(word + 1, 0);
            }
            mask[word] |= 1 << (cpu % usize::BITS as usize);
        }
        self.attributes.affinity = Some(mask);
        self
    }

    /// Sets the nice value, with `setpriority(2)`: from -20, the highest priority, to 19. It is a value, not
    /// an increment.
    ///
    /// The spawn fails with `EACCES` in [`Step::Nice`](crate::Step::Nice) if the value is below that of this
    /// process and neither `RLIMIT_NICE` nor the privilege (`CAP_SYS_NICE`) permits it.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("nice").nice(19).output()?;
    /// assert_eq!(output.stdout, b"19\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn nice(&mut self, value: i32) -> &mut Self {
        self.attributes.nice = Some(value);
        self
    }

    /// Sets the number of the signal that the kernel sends to the child when its parent dies.
    ///
    /// The parent is the *thread* that spawns: the kernel also sends the signal when that thread ends and
    /// the process goes on. Spawn on a thread that lives as long as the process, and not in a task of a
    /// tokio runtime that may end before.
    ///
    /// If the parent dies before the child has made the setting, the child sends the signal to itself. That
    /// has no effect if the child is pid 1 of a PID namespace. The kernel clears the setting when the child
    /// executes a set-user-ID program (`PR_SET_PDEATHSIG(2const)`).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut child = Command::new("sleep")
    ///     .arg("60")
    ///     .parent_death_signal(libc::SIGKILL)
    ///     .spawn()?;
    /// # child.kill()?;
    /// # child.wait()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn parent_death_signal(&mut self, signal: i32) -> &mut Self {
        self.attributes.parent_death_signal = Some(signal);
        self
    }

    /// Sets whether the child inherits the signal mask of the spawning thread, as with
    /// [`std::process::Command`]. Off by default: the child blocks no signal, so that SIGTERM ends it even
    /// if the thread that spawns it blocks SIGTERM.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("grep").args(["SigBlk", "/proc/self/status"]).output()?;
    /// assert_eq!(output.stdout, b"SigBlk:\t0000000000000000\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn inherit_signal_mask(&mut self, inherit: bool) -> &mut Self {
        self.attributes.inherit_signal_mask = inherit;
        self
    }

    /// Sets whether signals that this process ignores have their default action in the child. Off by
    /// default.
    ///
    /// When it is off, they stay ignored, as every `exec` leaves them (`signal(7)`), except SIGPIPE: the
    /// Rust runtime ignores it, and other programs do not expect that. Signals that this process handles
    /// always have their default action in the child.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("grep")
    ///     .args(["SigIgn", "/proc/self/status"])
    ///     .reset_ignored_signals(true)
    ///     .output()?;
    /// assert_eq!(output.stdout, b"SigIgn:\t0000000000000000\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn reset_ignored_signals(&mut self, reset: bool) -> &mut Self {
        self.attributes.reset_ignored_signals = reset;
        self
    }

    /// Adds a closure that the child runs before `exec`, after all other steps. Closures run in the order
    /// in which they were added. If one returns an error, the spawn fails with the error number of it in
    /// [`Step::PreExec`](crate::Step::PreExec), and with `EINVAL` if it has none.
    ///
    /// A command with a closure *forks*, because the closure must not see memory that it shares with the
    /// parent. The cost of a fork grows with the memory of this process: prefer the other methods where they
    /// suffice.
    ///
    /// # Safety
    ///
    /// The closure runs in a copy of a process that may have other threads, of which the copy has none. A
    /// lock that another thread held at the fork stays locked, so the closure may only call functions that
    /// are async-signal-safe (`signal-safety(7)`). See
    /// [`CommandExt::pre_exec`](std::os::unix::process::CommandExt::pre_exec).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut command = Command::new("sh");
    /// command.args(["-c", "umask"]);
    /// // SAFETY: `umask` is async-signal-safe.
    /// unsafe {
    ///     command.pre_exec(|| {
    ///         libc::umask(0o077);
    ///         Ok(())
    ///     });
    /// }
    /// assert_eq!(command.output()?.stdout, b"0077\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[allow(unsafe_code)]
    pub unsafe fn pre_exec(
        &mut self,
        f: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    ) -> &mut Self {
        self.pre_exec.push(Box::new(f));
        self
    }
}
