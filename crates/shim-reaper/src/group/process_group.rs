use std::io;
use std::time::{Duration, Instant};

use nix::libc;

use super::GroupError;
use crate::Signal;
use crate::kernel::{Member, NoPidfd, ProcessTable};
use crate::shim::{Shim, State};

/// How often a member without a pidfd is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

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
        // A list of processes that fork and exit can miss all of them, until they have been killed.
        let mut is_first = true;
        // Again, because a process can join the group after a signal.
        loop {
            let is_last = self.kernel.now() >= deadline;
            let members = self.find_members_by(deadline, Some(Signal::SIGKILL))?;
            if members.is_empty() && !is_first {
                return Ok(());
            }
            is_first = false;
            for member in members {
                if !self.await_member(member, deadline, true)? || is_last {
                    return Err(GroupError::StillRunning { pid: member.pid });
                }
            }
        }
    }

    pub(super) fn await_empty(&mut self, deadline: Instant) -> Result<bool, GroupError> {
        loop {
            // Members that fork and exit do not extend the wait.
            let is_last = self.kernel.now() >= deadline;
            let members = self.find_members_by(deadline, None)?;
            if members.is_empty() {
                return Ok(true);
            }
            // One after another: the wait for the last ends when all have exited.
            for member in members {
                if !self.await_member(member, deadline, false)? || is_last {
                    return Ok(false);
                }
            }
        }
    }

    /// Does what [`find_members`](Self::find_members) does, and repeats it until `deadline` while no
    /// descriptor is free.
    fn find_members_by(
        &mut self,
        deadline: Instant,
        signal: Option<Signal>,
    ) -> Result<Vec<Member>, GroupError> {
        loop {
            match self.find_members(signal) {
                Err(GroupError::Io { .. }) if self.kernel.now() < deadline => {
                    self.kernel.sleep(POLL_INTERVAL);
                }
                found => return found,
            }
        }
    }

    /// Signals the group, and returns the members that were running before.
    fn find_members(&mut self, signal: Option<Signal>) -> Result<Vec<Member>, GroupError> {
        let running = self.kernel.group_members(self.leader.pid);
        let members = match (self.send(signal), &self.members) {
            (Ok(()) | Err(GroupError::Denied { .. }), _) => {
                running.map_err(|source| self.error(source))?
            }
            (Err(GroupError::Empty { .. }), _) => Vec::new(),
            // The leader has been reaped in the meantime. Pid and start time identify the members.
            (Err(GroupError::Unidentified { .. }), Some(known)) => {
                let known = known.iter().copied();
                known.filter(|member| self.is_running(*member)).collect()
            }
            (Err(error), _) => return Err(error),
        };
        self.members = Some(members.clone());
        Ok(members)
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
        kill: bool,
    ) -> Result<bool, GroupError> {
        loop {
            let pidfd = self.kernel.open(member.pid);
            // Compared after the pidfd is open, which is then that of the member.
            if matches!(pidfd, Err(NoPidfd::NoProcess)) || !self.is_running(member) {
                return Ok(true);
            }
            if kill {
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

#[cfg(test)]
mod tests;
