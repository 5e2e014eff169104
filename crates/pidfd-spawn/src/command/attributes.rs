//! The methods that exist only on Unix or Linux.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use crate::command::Command;
use crate::plan::Rlimit;
use crate::resource::Resource;

/// More than any kernel supports.
const MAX_CPUS: usize = 1 << 16;

impl Command {
    /// Sets the user ID, with `setuid(2)`.
    ///
    /// Also drops all supplementary groups, unless [`groups`](Self::groups) sets them or the caller
    /// may not change them.
    ///
    /// [Other users](crate#other-users) describes how the memory of this process is protected from
    /// that user until the child executes the program.
    pub fn uid(&mut self, id: u32) -> &mut Self {
        self.attributes.uid = Some(id);
        self
    }

    /// Sets the group ID, with `setgid(2)`.
    pub fn gid(&mut self, id: u32) -> &mut Self {
        self.attributes.gid = Some(id);
        self
    }

    /// Sets the supplementary groups, with `setgroups(2)`.
    pub fn groups(&mut self, groups: &[u32]) -> &mut Self {
        self.attributes.groups = Some(groups.to_owned());
        self
    }

    /// Moves the child to the process group `pgroup`. With 0 it creates one whose ID is its pid.
    pub fn process_group(&mut self, pgroup: i32) -> &mut Self {
        self.attributes.process_group = Some(pgroup);
        self
    }

    /// Sets whether the child creates a session, and in it a process group.
    ///
    /// The spawn fails with `EPERM` if [`process_group(0)`](Self::process_group) has made it the
    /// leader of a process group before.
    pub fn setsid(&mut self, setsid: bool) -> &mut Self {
        self.attributes.setsid = setsid;
        self
    }

    /// Creates the child in the control group of this directory. Call it once for each hierarchy of
    /// `cgroups(7)` that the child is to have a group in: version 1 has several.
    ///
    /// The child is in the group from its first instruction (`CLONE_INTO_CGROUP`, Linux 5.7). On an
    /// older kernel, and for directories of version 1, it writes to `cgroup.procs` before all other
    /// steps.
    ///
    /// The spawn blocks while the group is frozen. [How it works](crate#how-it-works) describes what
    /// it costs if the kernel kills the group as a whole when its memory is full.
    ///
    /// # Example
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
    pub fn get_cgroups(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.attributes.cgroups.iter().map(AsFd::as_fd)
    }

    /// Sets the soft and the hard limit of a resource. [`u64::MAX`] means unlimited.
    ///
    /// Limits are set before the user ID, so a privileged caller can raise them for another user.
    /// The last call for a resource wins.
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

    /// Sets the CPUs on which the child may run, by number.
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

    /// Sets the nice value: from -20, the highest priority, to 19. It is not an increment.
    pub fn nice(&mut self, value: i32) -> &mut Self {
        self.attributes.nice = Some(value);
        self
    }

    /// Sets the attribute `no_new_privs`: no later `exec` of the child or of its descendants grants
    /// privileges.
    pub fn no_new_privs(&mut self, no_new_privs: bool) -> &mut Self {
        self.attributes.no_new_privs = no_new_privs;
        self
    }

    /// Sets the signal that the child gets when its parent dies.
    ///
    /// The parent is the *thread* that spawns: the kernel also sends the signal when that thread
    /// ends and the process goes on. Spawn on a thread that lives as long as the process.
    ///
    /// If the parent dies before the signal is set, the child sends it to itself. It cannot do so if
    /// it is the first process of a PID namespace. The kernel clears the setting when the child
    /// executes a set-user-ID program, see `PR_SET_PDEATHSIG(2const)`.
    pub fn parent_death_signal(&mut self, signal: i32) -> &mut Self {
        self.attributes.parent_death_signal = Some(signal);
        self
    }

    /// Sets whether the child inherits the signal mask of the spawning thread, as
    /// [`std::process::Command`] does. By default its mask is empty, so that it can be terminated
    /// although a thread that blocks signals has spawned it.
    pub fn inherit_signal_mask(&mut self, inherit: bool) -> &mut Self {
        self.attributes.inherit_signal_mask = inherit;
        self
    }

    /// Sets whether signals that this process ignores have their default action in the child.
    ///
    /// By default they stay ignored, as every `exec` leaves them, except SIGPIPE, which Rust
    /// programs ignore and others do not expect to be ignored. Signals that this process handles
    /// always have their default action.
    pub fn reset_ignored_signals(&mut self, reset: bool) -> &mut Self {
        self.attributes.reset_ignored_signals = reset;
        self
    }

    /// Gives the child a descriptor with this number.
    ///
    /// `fd` stays open in this process until the command is dropped; the child does not inherit it
    /// under its own number. The number may be one that this process, or
    /// this command, uses. For the numbers 0 to 2 it replaces the standard stream.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::fs::File;
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("cat")
    ///     .arg("/proc/self/fd/7")
    ///     .fd(7, File::open("/proc/sys/kernel/ostype")?)
    ///     .output()?;
    /// assert_eq!(output.stdout, b"Linux\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn fd(&mut self, child_number: RawFd, fd: impl Into<OwnedFd>) -> &mut Self {
        self.descriptors.insert(child_number, fd.into());
        self
    }

    /// Adds a closure that the child runs before `exec`, after all other steps. Closures run in the
    /// order in which they were added.
    ///
    /// A command with such a closure *forks*: the closure must not see memory that it shares with
    /// the parent. The cost of a fork grows with the memory of this process; prefer the other
    /// methods where they suffice.
    ///
    /// # Safety
    ///
    /// The closure runs in a copy of a process that may have had other threads, so it must only call
    /// async-signal-safe functions: locks may be held forever. See
    /// [`CommandExt::pre_exec`](std::os::unix::process::CommandExt::pre_exec).
    #[allow(unsafe_code)]
    pub unsafe fn pre_exec(
        &mut self,
        f: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    ) -> &mut Self {
        self.pre_exec.push(Box::new(f));
        self
    }
}
