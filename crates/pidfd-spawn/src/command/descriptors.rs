//! The methods that set which descriptors the child gets.

use std::os::fd::{OwnedFd, RawFd};

use crate::command::Command;

impl Command {
    /// Gives the child a descriptor under this number.
    ///
    /// `fd` stays open in this process until the command is dropped; the child does not inherit it under
    /// its number in this process. `child_number` may be in use by this process or by another descriptor of
    /// the command. The numbers 0 to 2 replace the standard streams.
    ///
    /// The spawn fails with `EBADF` in [`Step::Descriptors`](crate::Step::Descriptors) if the number is
    /// negative or not below `RLIMIT_NOFILE` (`dup(2)`).
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

    /// Sets whether the child inherits the descriptors of this process that are not close-on-exec, as with
    /// [`std::process::Command`]. On by default.
    ///
    /// Turn it off in a process that has many descriptors open. The child then gets only its standard
    /// streams and those of [`fd`](Self::fd), and the cost of the spawn does not depend on how many this
    /// process has: the kernel does not copy them for the child, and has none to close at `exec`.
    ///
    /// For that, the child is created with the table of descriptors of this process, and copies only its
    /// lowest numbers. Eight descriptors of `/dev/null` reserve such numbers, at which the spawn puts what
    /// the child gets. Call [`reserve_descriptors`](crate::reserve_descriptors) before this process opens
    /// many descriptors. Otherwise the first such spawn reserves the numbers that are free then, and the
    /// cost of this and all later spawns depends on how high they are.
    ///
    /// The child starts with a copy of the whole table
    ///
    /// * if it is [forked](crate#when-the-child-is-forked),
    /// * if it has a control group, a network namespace or rules of Landlock,
    /// * if it gets more than seven descriptors, or fewer if some have a reserved number in the child,
    /// * while another thread spawns in this way, and
    /// * where the [kernel or a seccomp filter](crate#kernel-requirements) does not let it leave the table.
    ///
    /// # Restrictions
    ///
    /// With the inheritance turned off:
    ///
    /// * Paths of the command must not lead through other descriptors of this process, as `/proc/self/fd/N`
    ///   and `/dev/fd/N` do. The child may have closed them.
    /// * The spawn drops the record locks of POSIX (`F_SETLK`, `fcntl_locking(2)`) that this process has on
    ///   files that the command gives to the child, because it closes duplicates of their descriptors in this
    ///   process. Locks of open file descriptions (`F_OFD_SETLK`) and of `flock(2)` are not affected.
    /// * This process must not close descriptors that it does not own, as `closefrom(3)` does, after such a
    ///   spawn or [`reserve_descriptors`](crate::reserve_descriptors). A later spawn would replace the
    ///   descriptors that then have the reserved numbers.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("ls")
    ///     .arg("/proc/self/fd")
    ///     .inherit_descriptors(false)
    ///     .output()?;
    /// // ls itself opens the directory.
    /// assert_eq!(output.stdout, b"0\n1\n2\n3\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn inherit_descriptors(&mut self, inherit: bool) -> &mut Self {
        self.attributes.hide_descriptors = !inherit;
        self
    }
}
