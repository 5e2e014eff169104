use std::io;
use std::time::Instant;

use nix::libc;

use super::{GroupError, POLL_INTERVAL};
use crate::Signal;
use crate::kernel::{Member, NoPidfd, ProcessTable};
use crate::shim::{Shim, State};

/// The process group that a shim leads, or has led. Its number is the pid of the shim.
///
/// No other group with that number is ever signalled:
///
/// * The pidfd of the leader refers to the group, not to its number, also after the leader has been
///   reaped: `PIDFD_SIGNAL_PROCESS_GROUP`, Linux 6.9.
/// * Before, the number is used only while the leader has not been reaped, because the kernel does
///   not give it to another process, and thus to no other group, until then.
/// * The running members are listed before a signal. If the signal then reaches the group, its number
///   was in use without interruption, so that they are members of this group.
#[derive(Debug)]
pub(super) struct ProcessGroup<'a, K: ProcessTable> {
    kernel: &'a K,
    leader: &'a Shim<K::Pidfd>,
    /// The running members that were found last, or `None` if no signal has reached the group.
    members: Option<Vec<Member>>,
}

/// How the processes of a group end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By themselves.
    Await,
    /// By SIGKILL, which is repeated until none is left.
    Kill,
}

/// Waits until the groups have no process but zombies, or `deadline` has passed, and reports for each
/// whether it has none. The processes of the system are listed once for all groups, and not at all
/// for a group that the kernel reports as empty.
pub(super) fn end_all<'a, K: ProcessTable>(
    kernel: &K,
    mut groups: Vec<&mut ProcessGroup<'a, K>>,
    deadline: Instant,
    how: End,
    mut report: impl FnMut(&'a Shim<K::Pidfd>, Result<bool, GroupError>),
) {
    let signal = (how == End::Kill).then_some(Signal::SIGKILL);
    // A list of processes that fork and exit can miss all of them, until they have been killed.
    let mut is_list_complete = how == End::Await;
    // Again, because a process can join a group after the list and the signal.
    loop {
        // Members that fork and exit do not extend the wait.
        let is_last = kernel.now() >= deadline;
        let mut is_left = |group: &ProcessGroup<'a, K>, ended: Option<_>| {
            let is_left = ended.is_none();
            ended
                .into_iter()
                .for_each(|ended| report(group.leader, ended));
            is_left
        };
        groups.retain(|group| is_left(group, group.end_without_list()));
        if groups.is_empty() {
            return;
        }
        let pgids = groups.iter().map(|group| group.leader.pid).collect();
        let listed = kernel.group_members(&pgids);
        let mut retries = false;
        groups.retain_mut(|group| {
            let ended = match group.find_members(&listed, signal) {
                Ok(has_members) => (!has_members && is_list_complete).then_some(Ok(true)),
                // No descriptor is free.
                Err(GroupError::Io { .. }) if !is_last => {
                    retries = true;
                    None
                }
                Err(error) => Some(Err(error)),
            };
            is_left(group, ended)
        });
        if retries {
            kernel.sleep(POLL_INTERVAL);
            continue;
        }
        groups.retain(|group| is_left(group, group.await_members(deadline, how, is_last)));
        is_list_complete = true;
    }
}

impl<'a, K: ProcessTable> ProcessGroup<'a, K> {
    pub(super) fn new(kernel: &'a K, leader: &'a Shim<K::Pidfd>) -> Self {
        Self {
            kernel,
            leader,
            members: None,
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), GroupError> {
        self.send(Some(signal))
    }

    pub(super) fn kill(&mut self, deadline: Instant) -> Result<(), GroupError> {
        self.end(deadline, End::Kill).map(drop)
    }

    pub(super) fn await_empty(&mut self, deadline: Instant) -> Result<bool, GroupError> {
        self.end(deadline, End::Await)
    }

    fn end(&mut self, deadline: Instant, how: End) -> Result<bool, GroupError> {
        let mut result = Ok(true);
        end_all(self.kernel, vec![self], deadline, how, |_, ended| {
            result = ended;
        });
        result
    }

    /// Returns the result if no list of processes is needed for it.
    fn end_without_list(&self) -> Option<Result<bool, GroupError>> {
        match self.send(None) {
            Err(GroupError::Empty { .. }) => Some(Ok(true)),
            Err(error @ GroupError::Unidentified { .. }) if self.members.is_none() => {
                Some(Err(error))
            }
            _ => None,
        }
    }

    /// Signals the group, and finds the members that were running before. Returns whether there are any.
    fn find_members(
        &mut self,
        listed: &io::Result<Vec<Member>>,
        signal: Option<Signal>,
    ) -> Result<bool, GroupError> {
        let members: Vec<Member> = match (self.send(signal), &self.members) {
            (Ok(()) | Err(GroupError::Denied { .. }), _) => match listed {
                Ok(listed) => {
                    let listed = listed.iter().copied();
                    listed
                        .filter(|member| member.group == self.leader.pid)
                        .collect()
                }
                Err(error) => return Err(self.error(copy_error(error))),
            },
            (Err(GroupError::Empty { .. }), _) => Vec::new(),
            // The leader has been reaped in the meantime. Pid and start time identify the members.
            (Err(GroupError::Unidentified { .. }), Some(known)) => {
                let known = known.iter().copied();
                known.filter(|member| self.is_running(*member)).collect()
            }
            (Err(error), _) => return Err(error),
        };
        let has_members = !members.is_empty();
        self.members = Some(members);
        Ok(has_members)
    }

    /// Waits until the members have exited, one after another: the wait for the last ends when all have
    /// exited. Returns the result if the last round has found members, or one still runs at `deadline`.
    fn await_members(
        &self,
        deadline: Instant,
        how: End,
        is_last: bool,
    ) -> Option<Result<bool, GroupError>> {
        for member in self.members.iter().flatten() {
            match (self.await_member(*member, deadline, how), how) {
                (Ok(true), _) if !is_last => {}
                (Ok(_), End::Await) => return Some(Ok(false)),
                (Ok(_), End::Kill) => {
                    return Some(Err(GroupError::StillRunning { pid: member.pid }));
                }
                (Err(error), _) => return Some(Err(error)),
            }
        }
        None
    }

    /// Signals all members, or with `None` checks that there is one.
    fn send(&self, signal: Option<Signal>) -> Result<(), GroupError> {
        let pid = self.leader.pid;
        // The sweep reaps under this lock too, so that the leader is not reaped in between.
        let state = self.leader.state();
        let leader = state.pidfd.as_ref().or(state.group_pidfd.as_ref());
        let by_pidfd = leader.map(|leader| self.kernel.signal_group(leader, signal));
        let sent = match by_pidfd {
            Some(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => None,
            sent => sent,
        };
        let sent = match sent {
            Some(sent) => sent,
            None if self.is_number_held(&state) => self.kernel.signal_group_number(pid, signal),
            None if self.kernel.group_exists(pid) => return Err(GroupError::Unidentified { pid }),
            None => return Err(GroupError::Empty { pid }),
        };
        sent.map_err(|source| match source.raw_os_error() {
            Some(libc::ESRCH) => GroupError::Empty { pid },
            Some(libc::EPERM) => GroupError::Denied { pid, source },
            _ => self.error(source),
        })
    }

    /// Returns whether the leader has not been reaped.
    fn is_number_held(&self, state: &State<K::Pidfd>) -> bool {
        match &state.pidfd {
            Some(pidfd) => !self.kernel.is_reaped(pidfd),
            None if state.group_pidfd.is_some() => false,
            None => {
                let stat = self.kernel.stat(self.leader.pid).ok().flatten();
                stat.is_some_and(|stat| state.start_time == Some(stat.start_time))
            }
        }
    }

    /// Waits until a member has exited, or `deadline` has passed. Returns whether it has exited.
    fn await_member(
        &self,
        member: Member,
        deadline: Instant,
        how: End,
    ) -> Result<bool, GroupError> {
        loop {
            let pidfd = self.kernel.open(member.pid);
            // Compared after the pidfd is open, which is then that of the member.
            if matches!(pidfd, Err(NoPidfd::NoProcess)) || !self.is_running(member) {
                return Ok(true);
            }
            if how == End::Kill {
                self.kill_member(member, pidfd.as_ref().ok())?;
            }
            if let Ok(pidfd) = pidfd {
                return Ok(self.kernel.await_exit(&pidfd, deadline));
            }
            if self.kernel.now() >= deadline {
                return Ok(false);
            }
            self.kernel.sleep(POLL_INTERVAL);
        }
    }

    /// Kills a member by itself. A signal to the group succeeds if it reaches any member.
    fn kill_member(&self, member: Member, pidfd: Option<&K::Pidfd>) -> Result<(), GroupError> {
        let killed = match pidfd {
            Some(pidfd) => self.kernel.signal(pidfd, Signal::SIGKILL),
            None => self.kernel.signal_pid(member.pid, Signal::SIGKILL),
        };
        match killed {
            Err(source) if source.raw_os_error() == Some(libc::EPERM) => {
                let pid = member.pid;
                Err(GroupError::Denied { pid, source })
            }
            // It has just exited.
            _ => Ok(()),
        }
    }

    fn is_running(&self, member: Member) -> bool {
        match self.kernel.stat(member.pid) {
            Ok(stat) => {
                stat.is_some_and(|stat| stat.start_time == member.start_time && !stat.exited)
            }
            // Out of descriptors.
            Err(_) => true,
        }
    }

    fn error(&self, source: io::Error) -> GroupError {
        let pid = self.leader.pid;
        GroupError::Io { pid, source }
    }
}

fn copy_error(error: &io::Error) -> io::Error {
    let code = error.raw_os_error();
    code.map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests;
