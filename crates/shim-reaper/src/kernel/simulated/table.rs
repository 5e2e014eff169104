use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::Instant;

use nix::libc;

use super::epoll::Epoll;
use super::process::{Features, Parent, Process, ProcessState, Resistance, WaitBy};
use super::requests::Requests;
use crate::kernel::MAX_READY_EVENTS;

/// A call of the kernel that fails once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// `epoll_wait` with EINTR.
    Ready,
    /// `waitid` with EINTR, which its caller repeats.
    Wait,
    /// `poll` with EINTR, which the kernel returns only while no pidfd has an event.
    Poll,
    /// `epoll_ctl` with ENOMEM or ENOSPC.
    Watch,
    Rearm,
    /// The start of a thread with EAGAIN.
    Thread,
    /// `fork` with EAGAIN.
    Fork,
    /// `pidfd_open` with EMFILE.
    Open,
    /// `dup` with EMFILE.
    Duplicate,
    /// `open` in procfs with EMFILE.
    Procfs,
}

/// All processes, and the descriptors that the reaper has for them.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) features: Features,
    pub(super) now: Instant,
    /// Indexed by start time.
    pub(super) processes: Vec<Process>,
    /// The process that has each pid.
    by_pid: BTreeMap<u32, usize>,
    pub(super) epoll: Epoll,
    pub(super) requests: Requests,
    pub(super) descriptor_limit: usize,
    pub(super) descriptors: usize,
    pub(super) failures: BTreeSet<Failure>,
    pub(super) reaped_by_reaper: Vec<u32>,
    /// A foreign wait in progress completes just before the next poll of a pidfd.
    pub(super) finish_reaping_before_poll: bool,
    /// Whether no call reports an exit.
    pub(super) is_blind: bool,
}

impl Table {
    pub(super) fn new(features: Features, now: Instant) -> Self {
        Self {
            features,
            now,
            processes: Vec::new(),
            by_pid: BTreeMap::new(),
            epoll: Epoll::default(),
            requests: Requests::default(),
            descriptor_limit: usize::MAX,
            descriptors: 0,
            failures: BTreeSet::new(),
            reaped_by_reaper: Vec::new(),
            finish_reaping_before_poll: false,
            is_blind: false,
        }
    }

    /// Returns the index of the process that currently has this pid.
    pub(super) fn find(&self, pid: u32) -> Option<usize> {
        self.by_pid.get(&pid).copied()
    }

    pub(super) fn add(&mut self, pid: u32, parent: Parent, group: Option<u32>) -> usize {
        let index = self.processes.len();
        self.processes.push(Process {
            pid,
            parent,
            group,
            forked_by_thread: false,
            inspectable: true,
            resistance: Resistance::None,
            state: ProcessState::Running,
            was_traced: false,
            died_at: None,
            reap_began_at: None,
            reaped_at: None,
            reaped_by: None,
        });
        self.by_pid.insert(pid, index);
        index
    }

    pub(super) fn set(&mut self, index: usize, state: ProcessState) {
        let process = &mut self.processes[index];
        let pid = process.pid;
        let is_reaped_at_once = self.features.reaps_children && process.parent == Parent::This;
        let state = match state {
            ProcessState::Zombie(code) if is_reaped_at_once => ProcessState::Reaped(code),
            state => state,
        };
        process.state = state;
        process.was_traced |= matches!(state, ProcessState::Traced(_));
        if state != ProcessState::Running && process.died_at.is_none() {
            process.died_at = Some(self.now);
            self.reparent_children(index);
        }
        let process = &mut self.processes[index];
        match state {
            ProcessState::BeingReaped(_) => process.reap_began_at = Some(self.now),
            ProcessState::Reaped(_) => {
                process.reaped_at = Some(self.now);
                process.reaped_by.get_or_insert(WaitBy::Other);
                if self.by_pid.get(&pid) == Some(&index) {
                    self.by_pid.remove(&pid);
                }
            }
            _ => {}
        }
        self.raise();
    }

    fn reparent_children(&mut self, dead: usize) {
        let parent = if self.features.subreaper {
            Parent::This
        } else {
            Parent::Init
        };
        for process in &mut self.processes {
            if process.parent == Parent::Process(dead) {
                process.parent = parent;
            }
        }
    }

    pub(super) fn has_group_member(&self, pgid: u32) -> bool {
        !self.group_members(pgid).is_empty()
    }

    /// Returns the processes in a process group that have not been reaped.
    pub(super) fn group_members(&self, pgid: u32) -> Vec<usize> {
        let unreaped = self.by_pid.values().copied();
        let mut members: Vec<usize> = unreaped
            .filter(|index| self.processes[*index].group == Some(pgid))
            .collect();
        members.sort_unstable();
        members
    }

    /// Returns the process that leads or has led the group of a process.
    pub(super) fn group_leader(&self, member: usize) -> Option<usize> {
        let pgid = self.processes[member].group?;
        // While the group has members, no later process gets its number.
        (0..=member).rfind(|index| self.processes[*index].pid == pgid)
    }

    /// Takes a descriptor. Returns false if none is left.
    pub(super) fn take_descriptor(&mut self) -> bool {
        let free = self.has_free_descriptor();
        self.descriptors += usize::from(free);
        free
    }

    pub(super) fn has_free_descriptor(&self) -> bool {
        self.descriptors < self.descriptor_limit
    }

    pub(super) fn raise(&mut self) {
        self.epoll.raise(&self.processes, self.features, self.now);
        if self.requests.is_due(&self.processes) {
            self.epoll.report_event();
        }
    }

    /// Closes descriptors.
    pub(super) fn close_all(&mut self, descriptors: &[u64]) {
        for descriptor in descriptors {
            self.epoll.close(*descriptor);
        }
        self.descriptors -= descriptors.len();
    }

    /// Creates the epoll on first use.
    pub(super) fn open_epoll(&mut self) -> io::Result<()> {
        if !self.epoll.is_open {
            if !self.take_descriptor() {
                return Err(no_descriptor());
            }
            self.epoll.is_open = true;
        }
        Ok(())
    }

    pub(super) fn take_events(&mut self, tokens: &mut VecDeque<u64>) -> usize {
        let count = self.requests.tokens.len().min(MAX_READY_EVENTS);
        if count > 0 {
            tokens.extend(self.requests.tokens.drain(..count));
            return count;
        }
        self.epoll
            .take_events(tokens, &self.processes, self.features, self.now)
    }
}

pub(super) fn no_descriptor() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}
