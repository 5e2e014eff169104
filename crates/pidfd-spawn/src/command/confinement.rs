//! The methods that restrict what the child can reach.

use std::os::fd::OwnedFd;

use crate::command::Command;

impl Command {
    /// Moves the child to this network namespace (`network_namespaces(7)`), with `setns(2)`.
    ///
    /// The spawn fails with `EPERM` in [`Step::NetworkNamespace`](crate::Step::NetworkNamespace) without
    /// the privilege (`CAP_SYS_ADMIN`), and with `EINVAL` if the descriptor is not a network namespace.
    ///
    /// ```no_run
    /// # use std::fs::File;
    /// // Created by `ip netns add lab`.
    /// let namespace = File::open("/run/netns/lab")?;
    /// let child = pidfd_spawn::Command::new("worker").network_namespace(namespace).spawn()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn network_namespace(&mut self, namespace: impl Into<OwnedFd>) -> &mut Self {
        self.attributes.network_namespace = Some(namespace.into());
        self
    }

    /// Sets whether the child gets the attribute `no_new_privs`: no later `exec`, of the child or of its
    /// descendants, then grants privileges, such as those of a set-user-ID program
    /// (`PR_SET_NO_NEW_PRIVS(2const)`).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("grep")
    ///     .args(["NoNewPrivs", "/proc/self/status"])
    ///     .no_new_privs(true)
    ///     .output()?;
    /// assert_eq!(output.stdout, b"NoNewPrivs:\t1\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn no_new_privs(&mut self, no_new_privs: bool) -> &mut Self {
        self.attributes.no_new_privs = no_new_privs;
        self
    }

    /// Restricts the child and its descendants by the rules of this ruleset of `landlock(7)` (Linux 5.13),
    /// which the crate [`landlock`](https://docs.rs/landlock) creates.
    ///
    /// The rules apply from the `exec` of the program on: they must permit to execute it, and to read
    /// its libraries. They restrict descriptors that the child opens, not those that it gets.
    ///
    /// The spawn fails in [`Step::Landlock`](crate::Step::Landlock): with `EPERM` without
    /// [`no_new_privs`](Self::no_new_privs) and without the privilege (`CAP_SYS_ADMIN`), with `EBADFD` if
    /// the descriptor is not a ruleset, with `ENOSYS` on an older kernel, and with `EOPNOTSUPP` if Landlock
    /// is not enabled. If a rule forbids the program, it fails with `EACCES` in
    /// [`Step::Exec`](crate::Step::Exec).
    ///
    /// ```
    /// # use std::fs::File;
    /// # use pidfd_spawn::{Command, Step};
    /// let not_a_ruleset = File::open("/dev/null")?;
    /// let error = Command::new("true")
    ///     .no_new_privs(true)
    ///     .landlock(not_a_ruleset)
    ///     .spawn()
    ///     .unwrap_err();
    /// assert_eq!(error.step(), Step::Landlock);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn landlock(&mut self, ruleset: impl Into<OwnedFd>) -> &mut Self {
        self.attributes.landlock = Some(ruleset.into());
        self
    }
}
