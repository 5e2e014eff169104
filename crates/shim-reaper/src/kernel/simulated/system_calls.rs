use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::mem;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::libc;

use super::kernel::{Descriptor, Simulated};
use super::mechanism::Mechanism;
use super::process::{Parent, Process, ProcessState, wait_status};
use super::table::{Failure, no_descriptor};
use crate::Signal;
use crate::command::sealed::CommandRef;
use crate::kernel::{
    ForkedChildren, Member, NoPidfd, Orphan, Orphans, ProcStat, ProcessTable, Spawned, Target,
    Until, WaitResult,
};
use crate::pipes::Pipes;

/// How often a thread that waits for an exit checks it.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Simulated {
    fn kill(&self, process: usize, signal: Signal) -> io::Result<()> {
        let mut table = self.table();
        let Process {
            state, resistance, ..
        } = table.processes[process];
        if state.is_reaped() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let is_fatal = matches!(signal, Signal::SIGKILL | Signal::SIGTERM);
        if state.is_running() && is_fatal && !resistance.survives(signal) {
            table.set(process, ProcessState::Zombie(-signal.as_raw()));
        }
        drop(table);
        if let Some(interrupts) = self.interrupts() {
            interrupts.signalled(process, signal);
        }
        Ok(())
    }

    fn kill_group(&self, pgid: u32, signal: Option<Signal>) -> io::Result<()> {
        let members = self.table().group_members(pgid);
        if members.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        for member in members {
            if let Some(signal) = signal {
                self.kill(member, signal)?;
            }
        }
        Ok(())
    }

    pub(crate) fn fails(&self, failure: Failure) -> io::Result<()> {
        if self.table().failures.remove(&failure) {
            let errno = match failure {
                Failure::Ready | Failure::Wait | Failure::Poll => libc::EINTR,
                Failure::Watch => libc::ENOSPC,
                Failure::Rearm => libc::ENOMEM,
                Failure::Thread | Failure::Fork => libc::EAGAIN,
                Failure::Open | Failure::Duplicate | Failure::Procfs => libc::EMFILE,
            };
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }
}

impl ProcessTable for Simulated {
    type Pidfd = Descriptor;

    fn now(&self) -> Instant {
        self.time()
    }

    fn sleep(&self, time: Duration) {
        self.interrupt("sleep");
        self.block(time);
    }

    fn spawn_thread(&self, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.interrupt("clone");
        match self.interrupts() {
            Some(interrupts) => interrupts.start_thread(Box::new(run)),
            None => {
                run();
                Ok(())
            }
        }
    }

    fn open(&self, pid: u32) -> Result<Descriptor, NoPidfd> {
        self.interrupt("pidfd_open");
        self.fails(Failure::Open).map_err(NoPidfd::Exhausted)?;
        self.open_now(pid)
    }

    fn duplicate(&self, pidfd: &Descriptor) -> io::Result<Descriptor> {
        self.interrupt("dup");
        self.fails(Failure::Duplicate)?;
        if !self.table().take_descriptor() {
            return Err(no_descriptor());
        }
        Ok(self.descriptor(pidfd.process))
    }

    fn accept(&self, pidfd: Descriptor) -> Result<Descriptor, NoPidfd> {
        Ok(pidfd)
    }

    fn spawn(
        &self,
        command: CommandRef<'_>,
        _: Option<i32>,
        early_pidfd: bool,
    ) -> io::Result<Spawned<Descriptor>> {
        self.interrupt("clone");
        let is_native = matches!(command, CommandRef::Native(_));
        let has_pidfds = self.features().pidfds;
        if is_native && has_pidfds && !self.table().has_free_descriptor() {
            return Err(no_descriptor());
        }
        self.fails(Failure::Fork)?;
        let process = self.interrupts().and_then(|interrupts| interrupts.fork());
        let process = process.ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))?;
        let pid = self.process(process).pid;
        // Otherwise the child may be reaped before its pidfd is open.
        let is_early = is_native || early_pidfd || self.features().reaps_children;
        let is_early = is_early && !self.lacks(Mechanism::PidfdFromBirth);
        Ok(Spawned {
            pid,
            pidfd: if is_early {
                self.open_now(pid)
            } else {
                self.open(pid)
            },
            pipes: Pipes::default(),
        })
    }

    fn discard(&self, pid: u32, pidfd: Option<Descriptor>) {
        let process = pidfd.map(|pidfd| pidfd.process);
        let Some(process) = process.or_else(|| self.find(pid)) else {
            return;
        };
        if self.process(process).state.is_running() {
            self.set_process(process, ProcessState::Zombie(-Signal::SIGKILL.as_raw()));
        }
        self.interrupt("waitid");
        self.wait_elsewhere(process);
    }

    fn watch(&self, pidfd: &Descriptor, token: u64) -> io::Result<()> {
        self.interrupt("epoll_ctl add");
        self.fails(Failure::Watch)?;
        let mut table = self.table();
        table.open_epoll()?;
        table
            .epoll
            .watch(pidfd.number, pidfd.process, token, Until::Exited);
        table.raise();
        Ok(())
    }

    fn watch_again(&self, pidfd: &Descriptor, token: u64, until: Until) -> io::Result<()> {
        self.interrupt("epoll_ctl modify");
        self.fails(Failure::Rearm)?;
        let mut table = self.table();
        table.epoll.watch(pidfd.number, pidfd.process, token, until);
        table.raise();
        Ok(())
    }

    fn unwatch(&self, pidfd: &Descriptor) {
        // Without an interrupt, which may panic: the reaper is about to publish an exit.
        self.table().epoll.close(pidfd.number);
    }

    fn reap_on_exit(&self, pidfd: &Descriptor, token: u64) {
        if self.features().io_uring {
            self.add_request(pidfd, token);
        }
    }

    fn release(&self, pidfd: Descriptor) -> Option<Descriptor> {
        self.release_pidfd(pidfd)
    }

    fn stop_reaping(&self) {
        self.note_final_drain();
        if self.features().io_uring && !self.lacks(Mechanism::RequestsEnd) {
            self.stop_requests();
        }
    }

    fn ready(&self, tokens: &mut VecDeque<u64>) -> io::Result<usize> {
        self.interrupt("epoll_wait");
        self.fails(Failure::Ready)?;
        if self.is_blind() {
            return Ok(0);
        }
        Ok(self.table().take_events(tokens))
    }

    fn peek(&self, target: Target<'_, Descriptor>) -> WaitResult {
        self.wait(&target, false, false)
    }

    fn reap(&self, target: Target<'_, Descriptor>) -> WaitResult {
        self.wait(&target, true, false)
    }

    fn exit_status(&self, pidfd: &Descriptor) -> Option<ExitStatus> {
        self.interrupt("PIDFD_GET_INFO");
        let state = self.process(pidfd.process).state;
        let kept = state.is_reaped() && self.features().exit_info;
        state.status().filter(|_| kept)
    }

    fn has_exited(&self, pidfd: &Descriptor) -> bool {
        self.interrupt("poll");
        let mut table = self.table();
        let finish = mem::take(&mut table.finish_reaping_before_poll);
        let state = table.processes[pidfd.process].state;
        if let (true, ProcessState::BeingReaped(code)) = (finish, state) {
            table.set(pidfd.process, ProcessState::Reaped(code));
        }
        if state.is_running() {
            table.failures.remove(&Failure::Poll);
        }
        !state.is_running() && !table.is_blind
    }

    fn any_has_exited(&self, pidfds: &[&Descriptor]) -> bool {
        let may_have_exited = || {
            // As in `Linux`, a poll that fails shows nothing.
            self.fails(Failure::Poll).is_err() || pidfds.iter().any(|pidfd| self.has_exited(pidfd))
        };
        !self.lacks(Mechanism::SpotCheck) && may_have_exited()
    }

    fn await_exit(&self, pidfd: &Descriptor, deadline: Instant) -> bool {
        while !self.has_exited(pidfd) {
            if deadline <= self.time() {
                return false;
            }
            self.block(POLL_INTERVAL);
        }
        true
    }

    fn is_reaped(&self, pidfd: &Descriptor) -> bool {
        self.interrupt("pidfd_send_signal 0");
        if self.lacks(Mechanism::PidfdInChecks) {
            return false;
        }
        self.process(pidfd.process).state.is_reaped()
    }

    fn signal(&self, pidfd: &Descriptor, signal: Signal) -> io::Result<()> {
        self.interrupt("pidfd_send_signal");
        if self.lacks(Mechanism::PidfdInSignals) {
            return self.signal_pid(self.process(pidfd.process).pid, signal);
        }
        self.kill(pidfd.process, signal)
    }

    fn signal_pid(&self, pid: u32, signal: Signal) -> io::Result<()> {
        self.interrupt("kill");
        let process = self.find(pid);
        self.kill(
            process.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?,
            signal,
        )
    }

    fn signal_group(&self, leader: &Descriptor, signal: Option<Signal>) -> io::Result<()> {
        self.interrupt("pidfd_send_signal to a group");
        let table = self.table();
        // `hangup` came with the same release.
        if !table.features.hangup {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let pgid = table.processes[leader.process].pid;
        let members = table.group_members(pgid);
        let mut leaders = members.iter().map(|member| table.group_leader(*member));
        let is_recycled = leaders.any(|found| found != Some(leader.process));
        drop(table);
        if is_recycled {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        self.kill_group(pgid, signal)
    }

    fn signal_group_number(&self, pgid: u32, signal: Option<Signal>) -> io::Result<()> {
        self.interrupt("kill a group");
        self.kill_group(pgid, signal)
    }

    fn group_members(&self, pgids: &BTreeSet<u32>) -> io::Result<Vec<Member>> {
        self.interrupt("read /proc");
        self.fails(Failure::Procfs)?;
        let table = self.table();
        if !table.has_free_descriptor() {
            return Err(no_descriptor());
        }
        let members = pgids.iter().flat_map(|pgid| {
            let members = table.group_members(*pgid).into_iter();
            members.map(|index| (*pgid, index, table.processes[index]))
        });
        let running = members.filter(|(.., process)| process.state.is_running());
        Ok(running
            .map(|(group, index, process)| Member {
                pid: process.pid,
                group,
                start_time: index as u64,
            })
            .collect())
    }

    fn stat(&self, pid: u32) -> io::Result<Option<ProcStat>> {
        self.interrupt("read stat");
        self.fails(Failure::Procfs)?;
        let table = self.table();
        if !table.has_free_descriptor() {
            return Err(no_descriptor());
        }
        let Some(index) = table.find(pid) else {
            return Ok(None);
        };
        let process = table.processes[index];
        let status = match process.state {
            ProcessState::Zombie(code) | ProcessState::Traced(code) if process.inspectable => {
                Some(wait_status(code))
            }
            _ => None,
        };
        let has_start_time = !table.features.lacks(Mechanism::StartTime);
        Ok(Some(ProcStat {
            start_time: if has_start_time { index as u64 } else { 0 },
            exited: !process.state.is_running(),
            status,
        }))
    }

    fn adopts_orphans(&self) -> bool {
        self.features().subreaper
    }

    fn dead_orphans(&self, among: Orphans<'_>, _: &mut ForkedChildren) -> Vec<Orphan> {
        self.interrupt("read children");
        let fails = self.fails(Failure::Procfs).is_err();
        let table = self.table();
        if fails || !table.has_free_descriptor() {
            return Vec::new();
        }
        let processes = table.processes.iter().enumerate();
        let dead = processes.filter(|(_, process)| {
            let is_candidate = process.parent == Parent::This && !process.forked_by_thread;
            is_candidate && matches!(process.state, ProcessState::Zombie(_))
        });
        let wanted = dead.filter(|(_, process)| match among {
            Orphans::InGroups(pgids) => process
                .group
                .is_some_and(|pgid| pgid != process.pid && pgids.contains(&pgid)),
            Orphans::All => true,
        });
        wanted
            .map(|(index, process)| Orphan {
                pid: process.pid,
                start_time: index as u64,
            })
            .collect()
    }

    fn reap_orphan(&self, orphan: Orphan) -> bool {
        let pidfd = self.open(orphan.pid);
        let target = match &pidfd {
            Ok(pidfd) => Target::Pidfd(orphan.pid, pidfd),
            Err(NoPidfd::Unsupported) => Target::Pid(orphan.pid),
            Err(NoPidfd::NoProcess | NoPidfd::Exhausted(_)) => return false,
        };
        let same = matches!(
            self.stat(orphan.pid),
            Ok(Some(stat)) if stat.start_time == orphan.start_time
        );
        same && matches!(self.wait(&target, true, true), WaitResult::Exited(_))
    }

    fn group_exists(&self, pgid: u32) -> bool {
        self.interrupt("killpg 0");
        let table = self.table();
        // As in `Linux`: a process that has the number may be a new one.
        table.find(pgid).is_none() && table.has_group_member(pgid)
    }
}
