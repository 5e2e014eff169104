use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::{ForkedChildren, ProcStat};
use crate::Signal;
use crate::command::sealed::CommandRef;
use crate::pipes::Pipes;
use crate::sys::ChildExit;

/// The maximum number of tokens that one call of [`ProcessTable::ready`] appends. Fewer mean that
/// no event is left.
pub(crate) const MAX_READY_EVENTS: usize = 128;

/// The kernel interface of the sweep.
///
/// `Linux` makes the system calls. The tests drive the same sweep with a simulated process table.
/// Four methods block: [`spawn`](Self::spawn), until the child has executed its program,
/// [`discard`](Self::discard) and [`await_exit`](Self::await_exit), until it has exited, and
/// [`sleep`](Self::sleep).
pub(crate) trait ProcessTable: Debug + Send + Sync + 'static {
    /// A stable reference to one process, which a recycled pid cannot redirect.
    type Pidfd: Debug + Send + Sync + 'static;

    fn now(&self) -> Instant;

    fn sleep(&self, time: Duration);

    fn spawn_thread(&self, run: impl FnOnce() + Send + 'static) -> io::Result<()>;

    fn open(&self, pid: u32) -> Result<Self::Pidfd, NoPidfd>;

    /// Returns why the kernel, or a seccomp filter, did not let [`open`](Self::open) open a pidfd.
    fn pidfd_failure(&self) -> Option<&io::Error> {
        None
    }

    fn duplicate(&self, pidfd: &Self::Pidfd) -> io::Result<Self::Pidfd>;

    /// Checks a pidfd that other code has opened.
    fn accept(&self, pidfd: Self::Pidfd) -> Result<Self::Pidfd, NoPidfd>;

    /// Spawns a child in a process group, with 0 in a new one that it leads. A native command gets the
    /// pidfd with the child. With `early_pidfd`, the child of a std command opens its pidfd before it
    /// executes the program, which makes the spawn slower: otherwise a foreign wait could reap it
    /// before [`open`](Self::open).
    fn spawn(
        &self,
        command: CommandRef<'_>,
        process_group: Option<i32>,
        early_pidfd: bool,
    ) -> io::Result<Spawned<Self::Pidfd>>;

    /// Kills and reaps a spawned child that cannot be registered.
    fn discard(&self, pid: u32, pidfd: Option<Self::Pidfd>);

    /// Makes [`ready`](Self::ready) return `token` once, when the process has exited.
    fn watch(&self, pidfd: &Self::Pidfd, token: u64) -> io::Result<()>;

    /// Re-arms a watch that has reported its event.
    fn watch_again(&self, pidfd: &Self::Pidfd, token: u64, until: Until) -> io::Result<()>;

    /// Removes a watch. Closing the pidfd does so too.
    fn unwatch(&self, pidfd: &Self::Pidfd);

    /// Makes the kernel reap a child as it exits, if it can, in place of a watch. [`ready`](Self::ready)
    /// then returns `token` once, and [`reap`](Self::reap) the status, without the usage.
    fn reap_on_exit(&self, _pidfd: &Self::Pidfd, _token: u64) {}

    /// Returns the pidfd of a finished child for closing, or `None` if the kernel still needs it for
    /// [`reap_on_exit`](Self::reap_on_exit), and it is closed later.
    fn release(&self, pidfd: Self::Pidfd) -> Option<Self::Pidfd>;

    /// Ends all of [`reap_on_exit`](Self::reap_on_exit): of what exits from now on, the kernel reaps
    /// nothing. [`reap`](Self::reap) returns the status of what it has reaped.
    fn stop_reaping(&self) {}

    /// Appends up to [`MAX_READY_EVENTS`] tokens of watches that have an event, and returns how
    /// many events there were.
    fn ready(&self, tokens: &mut VecDeque<u64>) -> io::Result<usize>;

    /// Checks whether a child has exited, and leaves the zombie waitable.
    fn peek(&self, target: Target<'_, Self::Pidfd>) -> WaitResult;

    /// Reaps a child if it has exited, or returns the status with which the kernel
    /// [has reaped](Self::reap_on_exit) it.
    fn reap(&self, target: Target<'_, Self::Pidfd>) -> WaitResult;

    /// Returns the wait status of a process that any wait has reaped, or `None` if the kernel does
    /// not keep it.
    fn exit_status(&self, pidfd: &Self::Pidfd) -> Option<ExitStatus>;

    /// Returns true once the process is a zombie or reaped. Its parent cannot reap it before its
    /// tracer has waited for it.
    fn has_exited(&self, pidfd: &Self::Pidfd) -> bool;

    /// Returns whether [`has_exited`](Self::has_exited) may be true for one of the processes.
    fn any_has_exited(&self, pidfds: &[&Self::Pidfd]) -> bool {
        pidfds.iter().any(|pidfd| self.has_exited(pidfd))
    }

    /// Waits until the process is a zombie or reaped, or `deadline` has passed. Returns whether it is.
    fn await_exit(&self, pidfd: &Self::Pidfd, deadline: Instant) -> bool;

    /// Returns true once the process is reaped, so that its pid may be recycled.
    fn is_reaped(&self, pidfd: &Self::Pidfd) -> bool;

    fn signal(&self, pidfd: &Self::Pidfd, signal: Signal) -> io::Result<()>;

    fn signal_pid(&self, pid: u32, signal: Signal) -> io::Result<()>;

    /// Sends a signal to every process in the group that `leader` leads or has led, or with `None`
    /// only checks that there is one. Fails with `EINVAL` before Linux 6.9.
    fn signal_group(&self, leader: &Self::Pidfd, signal: Option<Signal>) -> io::Result<()>;

    /// Does what [`signal_group`](Self::signal_group) does, for the group that has this number.
    fn signal_group_number(&self, pgid: u32, signal: Option<Signal>) -> io::Result<()>;

    /// Returns the processes in the groups that have these numbers, without zombies.
    fn group_members(&self, pgids: &BTreeSet<u32>) -> io::Result<Vec<Member>>;

    /// Returns `None` if no process has this pid.
    fn stat(&self, pid: u32) -> io::Result<Option<ProcStat>>;

    /// Returns whether the kernel reparents orphans to this process: it is pid 1 or a subreaper.
    fn adopts_orphans(&self) -> bool;

    /// Returns zombies that may be orphans reparented to this process. Of all orphans, one call may return
    /// only a part.
    ///
    /// `forked` keeps the children that this process certainly forked from one call to the next, so
    /// that the list leaves them out even after the thread that forked them has exited.
    fn dead_orphans(&self, among: Orphans<'_>, forked: &mut ForkedChildren) -> Vec<Orphan>;

    /// Reaps an orphan. Returns false if it is gone, or may be another process.
    fn reap_orphan(&self, orphan: Orphan) -> bool;

    /// Returns true while the process group has a member and its number cannot be recycled.
    fn group_exists(&self, pgid: u32) -> bool;
}

/// The process that a wait is for: by pidfd if there is one, else by pid.
#[derive(Debug)]
pub(crate) enum Target<'a, P> {
    Pid(u32),
    Pidfd(u32, &'a P),
}

/// The result of a wait that does not block.
#[derive(Debug)]
pub(crate) enum WaitResult {
    Exited(ChildExit),
    Running,
    /// A foreign wait has reaped the process, or it is not a child of this process.
    NotWaitable,
}

/// A new child.
#[derive(Debug)]
pub(crate) struct Spawned<P> {
    pub(crate) pid: u32,
    pub(crate) pidfd: Result<P, NoPidfd>,
    pub(crate) pipes: Pipes,
}

/// A dead child that this process may not have forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Orphan {
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
}

/// The orphans that a sweep looks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Orphans<'a> {
    InGroups(&'a BTreeSet<u32>),
    All,
}

/// A running process in a process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pid: u32,
    pub(crate) group: u32,
    pub(crate) start_time: u64,
}

/// The event that a watch waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Exited,
    /// Any wait has reaped the process. Kernels before 6.9 do not report it.
    Reaped,
}

/// The reason why a process has no pidfd.
#[derive(Debug)]
pub(crate) enum NoPidfd {
    /// No process has this pid, or the pid is that of a thread that is not a group leader.
    NoProcess,
    /// Descriptors or memory are exhausted; a later attempt may succeed.
    Exhausted(io::Error),
    /// The kernel is too old, a seccomp filter denies the call, or the embedder disabled pidfds.
    Unsupported,
}
