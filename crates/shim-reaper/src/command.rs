use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use sealed::{CommandRef, Sealed};

/// A command that [`ShimReaper::spawn`](crate::ShimReaper::spawn) accepts, by value or as `&mut`.
///
/// | command | the pidfd of the child | cost |
/// |---|---|---|
/// | [`Command`](crate::Command) of this crate, which is [`pidfd_spawn::Command`] | comes with the child | the least; [rarely a fork](pidfd_spawn#when-the-child-is-forked) |
/// | [`std::process::Command`] | is opened by the child: see [`early_pidfd`](crate::ReaperBuilder::early_pidfd) | a fork |
/// | [`tokio::process::Command`] | as for std | as for std |
///
/// [`kill_on_drop`](tokio::process::Command::kill_on_drop) of a tokio command has the meaning of
/// [`SpawnOptions::kill_on_drop`](crate::SpawnOptions::kill_on_drop).
///
/// This trait is sealed: the types above are the only ones that implement it. Use it to write a function
/// that accepts each of them:
///
/// ```
/// use shim_reaper::{ShimHandle, ShimReaper, SpawnCommand};
///
/// fn launch(reaper: &ShimReaper, command: impl SpawnCommand) -> std::io::Result<ShimHandle> {
///     reaper.spawn(command)
/// }
/// ```
pub trait SpawnCommand: Sealed {}

pub(crate) mod sealed {
    /// A command of one of the accepted types.
    #[derive(Debug)]
    pub enum CommandRef<'a> {
        Native(&'a mut pidfd_spawn::Command),
        Std(&'a mut std::process::Command),
    }

    pub trait Sealed {
        fn as_command(&mut self) -> CommandRef<'_>;

        /// Returns whether the command itself asks for a SIGKILL when the last handle is dropped.
        fn kills_on_drop(&self) -> bool {
            false
        }
    }
}

impl CommandRef<'_> {
    /// Returns the directory of the control group in which the child is created: that of version 2
    /// if there are several.
    pub(crate) fn control_group(&self) -> Option<BorrowedFd<'_>> {
        let Self::Native(command) = self else {
            return None;
        };
        let is_version_2 = |dir: &BorrowedFd<'_>| {
            Path::new(&format!("/proc/self/fd/{}/cgroup.events", dir.as_raw_fd())).exists()
        };
        let found = command.get_cgroups().find(is_version_2);
        found.or_else(|| command.get_cgroups().next())
    }
}

impl SpawnCommand for pidfd_spawn::Command {}
impl SpawnCommand for std::process::Command {}
impl SpawnCommand for tokio::process::Command {}
impl<C: SpawnCommand> SpawnCommand for &mut C {}

impl Sealed for pidfd_spawn::Command {
    fn as_command(&mut self) -> CommandRef<'_> {
        CommandRef::Native(self)
    }
}

impl Sealed for std::process::Command {
    fn as_command(&mut self) -> CommandRef<'_> {
        CommandRef::Std(self)
    }
}

impl Sealed for tokio::process::Command {
    fn as_command(&mut self) -> CommandRef<'_> {
        CommandRef::Std(self.as_std_mut())
    }

    fn kills_on_drop(&self) -> bool {
        self.get_kill_on_drop()
    }
}

impl<C: Sealed> Sealed for &mut C {
    fn as_command(&mut self) -> CommandRef<'_> {
        (**self).as_command()
    }

    fn kills_on_drop(&self) -> bool {
        (**self).kills_on_drop()
    }
}
