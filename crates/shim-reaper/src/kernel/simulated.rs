//! A process table in memory, for histories that the running kernel will not play on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

use super::{
    Death, NoPidfd, Orphan, ProcStat, ProcessTable, READY_AT_ONCE, Spawned, Target, Until, Waited,
};
use crate::ResourceUsage;

/// What a kernel can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// `PIDFD_INFO_EXIT`, Linux 6.15.
    pub(crate) exit_info: bool,
    /// `POLLHUP` of a reaped process's pidfd, Linux 6.9.
    pub(crate) hangup: bool,
    /// Watches report; without, every report is lost.
    pub(crate) reports: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    Zombie(i32),
    /// Dead, and kept from its parent by a tracer that has not waited.
    Traced(i32),
    /// Somebody's wait has begun to collect it, and has not published its status yet.
    BeingReaped(i32),
    Reaped(i32),
}

#[derive(Debug)]
struct Process {
    pid: u32,
    child: bool,
    inspectable: bool,
    group: Option<u32>,
    life: Life,
}

#[derive(Debug)]
pub(crate) struct Simulated {
    abilities: Abilities,
    world: Mutex<World>,
}

#[derive(Debug)]
struct World {
    now: Instant,
    /// By start time, which serves as pidfd too.
    processes: Vec<Process>,
    watches: BTreeMap<u64, (usize, Until)>,
    reported: VecDeque<u64>,
    reaped_by_us: Vec<u32>,
    /// Whoever is reaping finishes just before the next look into procfs.
    finish_before_stat: bool,
}

impl Simulated {
    pub(crate) fn new(abilities: Abilities) -> Self {
        Self {
            abilities,
            world: Mutex::new(World {
                now: Instant::now(),
                processes: Vec::new(),
                watches: BTreeMap::new(),
                reported: VecDeque::new(),
                reaped_by_us: Vec::new(),
                finish_before_stat: false,
            }),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fork(&self, pid: u32) {
        self.add(pid, true, true);
    }

    /// A process of somebody else's.
    pub(crate) fn add_stranger(&self, pid: u32, inspectable: bool) {
        self.add(pid, false, inspectable);
    }

    fn add(&self, pid: u32, child: bool, inspectable: bool) {
        self.world().processes.push(Process {
            pid,
            child,
            inspectable,
            group: None,
            life: Life::Running,
        });
    }

    pub(crate) fn set_group(&self, pid: u32, pgid: u32) {
        let mut world = self.world();
        if let Some(index) = world.find(pid) {
            world.processes[index].group = Some(pgid);
        }
    }

    /// How many reports have not been taken.
    pub(crate) fn reports(&self) -> usize {
        self.world().reported.len()
    }

    /// Moves the process that has this pid on, and reports what its watches wait for.
    pub(crate) fn set(&self, pid: u32, life: Life) {
        let mut world = self.world();
        let Some(index) = world.find(pid) else {
            return;
        };
        world.processes[index].life = life;
        if self.abilities.reports {
            let world = &mut *world;
            let due = |(process, until): &(usize, Until)| {
                *process == index && world.processes[index].is_due(*until, self.abilities)
            };
            let tokens: Vec<u64> = world
                .watches
                .iter()
                .filter(|(_, watch)| due(watch))
                .map(|(token, _)| *token)
                .collect();
            for token in tokens {
                world.watches.remove(&token);
                world.reported.push_back(token);
            }
        }
    }

    pub(crate) fn finish_reaping_before_next_stat(&self) {
        self.world().finish_before_stat = true;
    }

    pub(crate) fn pass_time(&self, time: Duration) {
        self.world().now += time;
    }

    pub(crate) fn reaped_by_us(&self) -> Vec<u32> {
        self.world().reaped_by_us.clone()
    }

    fn arm(&self, index: usize, token: u64, until: Until) {
        let mut world = self.world();
        if world.processes[index].is_due(until, self.abilities) && self.abilities.reports {
            world.reported.push_back(token);
        } else {
            world.watches.insert(token, (index, until));
        }
    }

    fn wait(&self, target: &Target<'_, usize>, collect: bool) -> Waited {
        let mut world = self.world();
        let index = match target {
            Target::Pidfd(_, index) => Some(**index),
            Target::Pid(pid) => world.find(*pid),
        };
        let Some(index) = index else {
            return Waited::NotOurs;
        };
        let process = &mut world.processes[index];
        match process.life {
            _ if !process.child => Waited::NotOurs,
            Life::Running | Life::Traced(_) => Waited::Running,
            Life::BeingReaped(_) | Life::Reaped(_) => Waited::NotOurs,
            Life::Zombie(code) => {
                if collect {
                    process.life = Life::Reaped(code);
                    let pid = process.pid;
                    world.reaped_by_us.push(pid);
                }
                Waited::Exited(Death {
                    status: exited(code),
                    usage: ResourceUsage::default(),
                })
            }
        }
    }
}

impl World {
    /// The process that has this pid now.
    fn find(&self, pid: u32) -> Option<usize> {
        self.processes
            .iter()
            .rposition(|process| process.pid == pid && !matches!(process.life, Life::Reaped(_)))
    }
}

impl Process {
    fn is_due(&self, until: Until, abilities: Abilities) -> bool {
        match until {
            Until::Exited => self.life != Life::Running,
            Until::Reaped => abilities.hangup && matches!(self.life, Life::Reaped(_)),
        }
    }
}

fn exited(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

impl ProcessTable for Simulated {
    type Pidfd = usize;

    fn now(&self) -> Instant {
        self.world().now
    }

    fn open(&self, pid: u32) -> Result<usize, NoPidfd> {
        self.world().find(pid).ok_or(NoPidfd::NoProcess)
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
        let mut world = self.world();
        let count = READY_AT_ONCE.min(world.reported.len());
        tokens.extend(world.reported.drain(..count));
        Ok(count)
    }

    fn peek(&self, target: Target<'_, usize>) -> Waited {
        self.wait(&target, false)
    }

    fn reap(&self, target: Target<'_, usize>) -> Waited {
        self.wait(&target, true)
    }

    fn exit_status(&self, pidfd: &usize) -> Option<ExitStatus> {
        match self.world().processes[*pidfd].life {
            Life::Reaped(code) if self.abilities.exit_info => Some(exited(code)),
            _ => None,
        }
    }

    fn has_exited(&self, pidfd: &usize) -> bool {
        self.world().processes[*pidfd].life != Life::Running
    }

    fn is_reaped(&self, pidfd: &usize) -> bool {
        matches!(self.world().processes[*pidfd].life, Life::Reaped(_))
    }

    fn signal(&self, _: &usize, _: Signal) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }

    fn signal_pid(&self, _: u32, _: Signal) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }

    fn stat(&self, pid: u32) -> io::Result<Option<ProcStat>> {
        if mem::take(&mut self.world().finish_before_stat) {
            let found = self.world().find(pid);
            if let Some(Life::BeingReaped(code)) = found.map(|i| self.world().processes[i].life) {
                self.set(pid, Life::Reaped(code));
            }
        }
        let world = self.world();
        Ok(world.find(pid).map(|index| {
            let process = &world.processes[index];
            let status = match process.life {
                Life::Zombie(code) if process.inspectable => Some(exited(code)),
                _ => None,
            };
            ProcStat {
                start_time: index as u64,
                exited: process.life != Life::Running,
                status,
            }
        }))
    }

    fn dead_orphans(&self, pgid: u32) -> Vec<Orphan> {
        let world = self.world();
        let dead = world.processes.iter().enumerate().filter(|(_, process)| {
            process.group == Some(pgid) && matches!(process.life, Life::Zombie(_))
        });
        dead.map(|(index, process)| Orphan {
            pid: process.pid,
            start_time: index as u64,
        })
        .collect()
    }

    fn reap_orphan(&self, orphan: Orphan) -> bool {
        let index = orphan.start_time as usize;
        matches!(
            self.reap(Target::Pidfd(orphan.pid, &index)),
            Waited::Exited(_)
        )
    }

    fn group_exists(&self, pgid: u32) -> bool {
        let world = self.world();
        let mut members = world.processes.iter();
        members
            .any(|process| process.group == Some(pgid) && !matches!(process.life, Life::Reaped(_)))
    }
}
