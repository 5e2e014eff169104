//! A process table in memory, for event orders that a real kernel does not produce on demand.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

use super::{
    MAX_READY_EVENTS, NoPidfd, Orphan, ProcStat, ProcessTable, Spawned, Target, Until, WaitResult,
};
use crate::ResourceUsage;
use crate::sys::ChildExit;

/// The kernel interfaces that the simulation offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// `PIDFD_INFO_EXIT`, Linux 6.15.
    pub(crate) exit_info: bool,
    /// `POLLHUP` of a reaped process's pidfd, Linux 6.9.
    pub(crate) hangup: bool,
    /// Watches report events; otherwise every event is lost.
    pub(crate) events: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Running,
    Zombie(i32),
    /// Dead, and not waitable for its parent until its tracer has waited.
    Traced(i32),
    /// A foreign wait has started to reap it, and the kernel has not published its status yet.
    BeingReaped(i32),
    Reaped(i32),
}

#[derive(Debug)]
struct Process {
    pid: u32,
    child: bool,
    inspectable: bool,
    group: Option<u32>,
    state: ProcessState,
}

#[derive(Debug)]
pub(crate) struct Simulated {
    features: Features,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    now: Instant,
    /// Indexed by start time, which is also the pidfd.
    processes: Vec<Process>,
    watches: BTreeMap<u64, (usize, Until)>,
    events: VecDeque<u64>,
    reaped_by_reaper: Vec<u32>,
    /// A foreign wait in progress completes just before the next poll of a pidfd.
    finish_reaping_before_poll: bool,
}

impl Simulated {
    pub(crate) fn new(features: Features) -> Self {
        Self {
            features,
            table: Mutex::new(Table {
                now: Instant::now(),
                processes: Vec::new(),
                watches: BTreeMap::new(),
                events: VecDeque::new(),
                reaped_by_reaper: Vec::new(),
                finish_reaping_before_poll: false,
            }),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fork(&self, pid: u32) {
        self.add(pid, true, true);
    }

    /// Adds a process that is not a child of this process.
    pub(crate) fn add_foreign(&self, pid: u32, inspectable: bool) {
        self.add(pid, false, inspectable);
    }

    fn add(&self, pid: u32, child: bool, inspectable: bool) {
        self.table().processes.push(Process {
            pid,
            child,
            inspectable,
            group: None,
            state: ProcessState::Running,
        });
    }

    /// Makes a process uninspectable, as one that executed a set-user-ID program is.
    pub(crate) fn forbid_inspection(&self, pid: u32) {
        let mut table = self.table();
        if let Some(index) = table.find(pid) {
            table.processes[index].inspectable = false;
        }
    }

    pub(crate) fn set_group(&self, pid: u32, pgid: u32) {
        let mut table = self.table();
        if let Some(index) = table.find(pid) {
            table.processes[index].group = Some(pgid);
        }
    }

    /// Returns how many events the reaper has not taken.
    pub(crate) fn pending_events(&self) -> usize {
        self.table().events.len()
    }

    /// Sets the state of the process that has this pid, and raises the events of its watches.
    pub(crate) fn set(&self, pid: u32, state: ProcessState) {
        let mut table = self.table();
        let Some(index) = table.find(pid) else {
            return;
        };
        table.processes[index].state = state;
        if self.features.events {
            let table = &mut *table;
            let due = |(process, until): &(usize, Until)| {
                *process == index && table.processes[index].is_due(*until, self.features)
            };
            let tokens: Vec<u64> = table
                .watches
                .iter()
                .filter(|(_, watch)| due(watch))
                .map(|(token, _)| *token)
                .collect();
            for token in tokens {
                table.watches.remove(&token);
                table.events.push_back(token);
            }
        }
    }

    pub(crate) fn finish_reaping_before_next_poll(&self) {
        self.table().finish_reaping_before_poll = true;
    }

    pub(crate) fn pass_time(&self, time: Duration) {
        self.table().now += time;
    }

    pub(crate) fn reaped_by_reaper(&self) -> Vec<u32> {
        self.table().reaped_by_reaper.clone()
    }

    fn arm(&self, index: usize, token: u64, until: Until) {
        let mut table = self.table();
        if table.processes[index].is_due(until, self.features) && self.features.events {
            table.events.push_back(token);
        } else {
            table.watches.insert(token, (index, until));
        }
    }

    fn wait(&self, target: &Target<'_, usize>, reap: bool) -> WaitResult {
        let mut table = self.table();
        let index = match target {
            Target::Pidfd(_, index) => Some(**index),
            Target::Pid(pid) => table.find(*pid),
        };
        let Some(index) = index else {
            return WaitResult::NotWaitable;
        };
        let process = &mut table.processes[index];
        let pid = process.pid;
        match process.state {
            _ if !process.child => WaitResult::NotWaitable,
            ProcessState::Running | ProcessState::Traced(_) => WaitResult::Running,
            ProcessState::BeingReaped(_) | ProcessState::Reaped(_) => WaitResult::NotWaitable,
            ProcessState::Zombie(code) => {
                if reap {
                    process.state = ProcessState::Reaped(code);
                    table.reaped_by_reaper.push(pid);
                }
                WaitResult::Exited(ChildExit {
                    status: wait_status(code),
                    usage: ResourceUsage::default(),
                })
            }
        }
    }
}

impl Table {
    /// Returns the index of the process that currently has this pid.
    fn find(&self, pid: u32) -> Option<usize> {
        self.processes.iter().rposition(|process| {
            process.pid == pid && !matches!(process.state, ProcessState::Reaped(_))
        })
    }
}

impl Process {
    fn is_due(&self, until: Until, features: Features) -> bool {
        match until {
            Until::Exited => self.state != ProcessState::Running,
            Until::Reaped => features.hangup && matches!(self.state, ProcessState::Reaped(_)),
        }
    }
}

fn wait_status(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

impl ProcessTable for Simulated {
    type Pidfd = usize;

    fn now(&self) -> Instant {
        self.table().now
    }

    fn open(&self, pid: u32) -> Result<usize, NoPidfd> {
        self.table().find(pid).ok_or(NoPidfd::NoProcess)
    }

    fn spawn(&self, _: &mut Command, _: bool) -> io::Result<Spawned<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn watch(&self, pidfd: &usize, token: u64) -> io::Result<()> {
        self.arm(*pidfd, token, Until::Exited);
        Ok(())
    }

    fn watch_again(&self, pidfd: &usize, token: u64, until: Until) -> io::Result<()> {
        self.arm(*pidfd, token, until);
        Ok(())
    }

    fn ready(&self, tokens: &mut VecDeque<u64>) -> io::Result<usize> {
        let mut table = self.table();
        let count = MAX_READY_EVENTS.min(table.events.len());
        tokens.extend(table.events.drain(..count));
        Ok(count)
    }

    fn peek(&self, target: Target<'_, usize>) -> WaitResult {
        self.wait(&target, false)
    }

    fn reap(&self, target: Target<'_, usize>) -> WaitResult {
        self.wait(&target, true)
    }

    fn exit_status(&self, pidfd: &usize) -> Option<ExitStatus> {
        match self.table().processes[*pidfd].state {
            ProcessState::Reaped(code) if self.features.exit_info => Some(wait_status(code)),
            _ => None,
        }
    }

    fn has_exited(&self, pidfd: &usize) -> bool {
        let finish = mem::take(&mut self.table().finish_reaping_before_poll);
        let Process { pid, state, .. } = self.table().processes[*pidfd];
        if let (true, ProcessState::BeingReaped(code)) = (finish, state) {
            self.set(pid, ProcessState::Reaped(code));
        }
        state != ProcessState::Running
    }

    fn is_reaped(&self, pidfd: &usize) -> bool {
        matches!(
            self.table().processes[*pidfd].state,
            ProcessState::Reaped(_)
        )
    }

    fn signal(&self, _: &usize, _: Signal) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }

    fn signal_pid(&self, _: u32, _: Signal) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }

    fn stat(&self, pid: u32) -> io::Result<Option<ProcStat>> {
        let table = self.table();
        Ok(table.find(pid).map(|index| {
            let process = &table.processes[index];
            let status = match process.state {
                ProcessState::Zombie(code) | ProcessState::Traced(code) if process.inspectable => {
                    Some(wait_status(code))
                }
                _ => None,
            };
            ProcStat {
                start_time: index as u64,
                exited: process.state != ProcessState::Running,
                status,
            }
        }))
    }

    fn dead_orphans(&self, pgids: &[u32], _: &mut HashSet<u32>) -> Vec<(u32, Orphan)> {
        let table = self.table();
        let processes = table.processes.iter().enumerate();
        let dead =
            processes.filter(|(_, process)| matches!(process.state, ProcessState::Zombie(_)));
        dead.filter_map(|(index, process)| {
            let pgid = process.group.filter(|pgid| pgids.contains(pgid))?;
            let orphan = Orphan {
                pid: process.pid,
                start_time: index as u64,
            };
            Some((pgid, orphan))
        })
        .collect()
    }

    fn reap_orphan(&self, orphan: Orphan) -> bool {
        let index = orphan.start_time as usize;
        matches!(
            self.reap(Target::Pidfd(orphan.pid, &index)),
            WaitResult::Exited(_)
        )
    }

    fn group_exists(&self, pgid: u32) -> bool {
        let table = self.table();
        let mut members = table.processes.iter();
        members.any(|process| {
            process.group == Some(pgid) && !matches!(process.state, ProcessState::Reaped(_))
        })
    }
}
