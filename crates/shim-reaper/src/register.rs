use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::command::sealed::CommandRef;
use crate::directory::{Check, Directory, Entries};
use crate::exits::Subscribers;
use crate::kernel::{NoPidfd, ProcessTable, Spawned, Target, WaitResult};
use crate::pipes::Pipes;
use crate::shim::{Groups, NO_PROCESS, Role, Shim};
use crate::stats::Counters;
use crate::sync::{Mutex, MutexGuard};
use crate::timers::{Sleep, Timers};
use crate::tokio_child::TokioChild;
use crate::{ReaperClosed, ReaperGauge, RegisterError, RegisterErrorKind};

/// The state that registering and sweeping share, and that needs no registry lock.
///
/// Its methods register processes. They never await: a registration is complete when they return,
/// and the sweep finds it in the directory.
#[derive(Debug)]
pub(crate) struct Shared<K: ProcessTable> {
    pub(crate) kernel: K,
    pub(crate) directory: Directory<K::Pidfd>,
    pub(crate) counters: Counters,
    pub(crate) subscribers: Subscribers,
    /// A child of the embedder's token, so that a shutdown of the reaper cancels nothing else.
    pub(crate) token: CancellationToken,
    /// Wakes the worker for a pending shim that no watch reports.
    pub(crate) wake_worker: Notify,
    pub(crate) sweep_interval: Duration,
    pub(crate) owner_grace: Duration,
    /// Whether to reap also orphans outside of the groups of shims.
    pub(crate) reap_all_orphans: bool,
    /// Whether every spawned child opens its own pidfd, not only after a foreign wait.
    early_pidfd: bool,
    shortage_logged: AtomicBool,
    /// Cancelled by the embedder to stop every shim and then shut down.
    pub(crate) stop_request: Option<StopRequest>,
    /// Set when a shutdown begins, before `token` is cancelled.
    refusing: AtomicBool,
    /// When a stopping shutdown that has begun sends SIGKILL.
    kill_at: Mutex<Option<Instant>>,
    /// The shims that the shutdown sent SIGKILL.
    killed_pids: Mutex<BTreeSet<u32>>,
    pub(crate) timers: Timers,
    /// Whether a foreign wait has reaped a child that only the reaper may wait for.
    foreign_wait_seen: AtomicBool,
}

/// A shutdown that stops the shims, which the embedder requests with a token.
#[derive(Debug)]
pub(crate) struct StopRequest {
    pub(crate) token: CancellationToken,
    pub(crate) grace: Duration,
}

/// The error of a registration after a shutdown has begun, with the pidfd of the process.
#[derive(Debug)]
pub(crate) struct Refused<P>(pub(crate) Option<P>);

impl<K: ProcessTable> Shared<K> {
    pub(crate) fn new(
        kernel: K,
        counters: Counters,
        token: CancellationToken,
        sweep_interval: Duration,
        owner_grace: Duration,
        early_pidfd: bool,
        stop_request: Option<StopRequest>,
    ) -> Self {
        Self {
            kernel,
            directory: Directory::new(),
            counters,
            subscribers: Subscribers::new(),
            token,
            wake_worker: Notify::new(),
            sweep_interval,
            owner_grace,
            reap_all_orphans: false,
            early_pidfd,
            shortage_logged: AtomicBool::new(false),
            stop_request,
            refusing: AtomicBool::new(false),
            kill_at: Mutex::default(),
            killed_pids: Mutex::default(),
            timers: Timers::default(),
            foreign_wait_seen: AtomicBool::new(false),
        }
    }

    /// Registers a process by pid.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn register(
        &self,
        pid: u32,
        role: Role,
    ) -> Result<Arc<Shim<K::Pidfd>>, RegisterError> {
        self.register_process(pid, None, role)
    }

    /// Registers the process of a pidfd, or without one the process that currently has this pid.
    pub(crate) fn register_process(
        &self,
        pid: u32,
        pidfd: Option<K::Pidfd>,
        role: Role,
    ) -> Result<Arc<Shim<K::Pidfd>>, RegisterError> {
        validate(pid).map_err(|kind| RegisterError::new(pid, kind))?;
        let pidfd = pidfd.map_or_else(|| self.kernel.open(pid), |pidfd| self.kernel.accept(pidfd));
        let waitable = match &pidfd {
            Ok(pidfd) if role == Role::Shared => !matches!(
                self.kernel.peek(Target::Pidfd(pid, pidfd)),
                WaitResult::NotWaitable
            ),
            _ => true,
        };
        let check = if waitable { Check::OnEvent } else { Check::Now };
        self.insert(pid, role, Groups::default(), pidfd, check)
            .map_err(|Refused(_)| RegisterError::new(pid, RegisterErrorKind::Closed))
    }

    /// Spawns a child and registers it.
    pub(crate) fn spawn(
        &self,
        mut command: CommandRef<'_>,
        process_group: Option<i32>,
    ) -> io::Result<(Arc<Shim<K::Pidfd>>, Pipes)> {
        if self.is_refusing() {
            return Err(io::Error::other(ReaperClosed));
        }
        if let Some(pgroup) = process_group {
            command.process_group(pgroup);
        }
        let control_group = command.control_group();
        let groups = Groups {
            leads: process_group == Some(0),
            control: control_group
                .map(|dir| dir.try_clone_to_owned())
                .transpose()?,
        };
        let early_pidfd = self.early_pidfd || self.foreign_wait_seen.load(Ordering::Relaxed);
        let Spawned { pid, pidfd, pipes } = self.kernel.spawn(command, early_pidfd)?;
        let (role, check) = (Role::Owned, Check::OnEvent);
        match self.insert(pid, role, groups, pidfd, check) {
            Ok(shim) => Ok((shim, pipes)),
            Err(Refused(pidfd)) => {
                // The reaper shut down in the meantime: undo the spawn.
                self.kernel.discard(pid, pidfd);
                Err(io::Error::other(ReaperClosed))
            }
        }
    }

    pub(crate) fn insert(
        &self,
        pid: u32,
        role: Role,
        groups: Groups,
        pidfd: Result<K::Pidfd, NoPidfd>,
        check: Check,
    ) -> Result<Arc<Shim<K::Pidfd>>, Refused<K::Pidfd>> {
        self.insert_child(pid, role, groups, pidfd, check, || None)
    }

    /// Does what [`insert`](Self::insert) does for a child that the reaper reaps through tokio, if
    /// `take_child` returns it.
    pub(crate) fn insert_child(
        &self,
        pid: u32,
        role: Role,
        groups: Groups,
        pidfd: Result<K::Pidfd, NoPidfd>,
        mut check: Check,
        take_child: impl FnOnce() -> Option<TokioChild>,
    ) -> Result<Arc<Shim<K::Pidfd>>, Refused<K::Pidfd>> {
        let mut start_time = None;
        let mut pidfd = match pidfd {
            Ok(pidfd) => Some(pidfd),
            Err(NoPidfd::NoProcess) => {
                check = Check::NotFound;
                None
            }
            Err(reason) => {
                if let NoPidfd::Exhausted(error) = &reason {
                    self.warn_without_pidfd(pid, error);
                }
                match self.kernel.stat(pid) {
                    Ok(Some(stat)) => start_time = Some(stat.start_time),
                    Ok(None) => check = Check::NotFound,
                    Err(_) => {}
                }
                None
            }
        };
        if check == Check::NotFound && role == Role::Owned {
            self.note_foreign_wait(pid);
        }
        let registration = self.counters.metrics.begin_registration();
        let mut entries = self.directory.lock();
        // Checked under the directory lock: the final drain locks it after the token is cancelled,
        // so that no registration comes after the drain.
        if self.is_refusing() {
            return Err(Refused(pidfd));
        }
        if let Some(entry) = self.find_same(&entries, pid, role, pidfd.as_ref(), start_time) {
            let mut state = entry.state();
            if let Some(child) = take_child() {
                state.tokio_child = Some(child);
            }
            if role > state.role {
                state.role = role;
                drop(state);
                entries.request_check(&entry);
                drop(entries);
                self.wake_worker.notify_one();
            }
            return Ok(Arc::clone(&entry));
        }
        let id = entries.next_id();
        // The watch is set under the directory lock, and the sweep reads the directory before it
        // processes events: it never gets an event of a shim that it does not know.
        let watched = pidfd.as_ref().map(|fd| (fd, self.kernel.watch(fd, id)));
        if let Some((fd, Err(error))) = watched {
            self.warn_without_pidfd(pid, &error);
            start_time = self.start_time(pid);
            // If it is not reaped now, the start time is its own.
            if self.kernel.is_reaped(fd) {
                check = Check::Now;
            } else {
                pidfd = None;
            }
        }
        if check == Check::NotFound {
            start_time = Some(NO_PROCESS);
        }
        let without_pidfd = pidfd.is_none();
        if without_pidfd {
            self.counters.change(ReaperGauge::WithoutPidfd, 1);
        }
        // The pidfd of a caller may be that of an earlier process with the pid of the entry.
        let has_ended = |pidfd| self.kernel.is_reaped(pidfd);
        let is_earlier = entries.get(pid).is_some() && pidfd.as_ref().is_some_and(has_ended);
        let shim = Shim::new(pid, id, groups.leads, role, pidfd, start_time);
        let shim = Arc::new(shim.in_control_group(groups.control));
        shim.state().tokio_child = take_child();
        if is_earlier {
            entries.insert_earlier(&shim, check);
        } else {
            entries.insert(&shim, check);
        }
        self.counters.change(ReaperGauge::Registered, 1);
        drop(entries);
        registration.complete();
        if without_pidfd {
            self.counters.metrics.adjust(ReaperGauge::WithoutPidfd, 1);
        }
        if check != Check::OnEvent {
            self.wake_worker.notify_one();
        }
        Ok(shim)
    }

    /// Returns the unfinished entry of the process that currently has this pid, unless `pidfd` is
    /// that of an earlier process.
    pub(crate) fn find_same(
        &self,
        entries: &MutexGuard<'_, Entries<K::Pidfd>>,
        pid: u32,
        role: Role,
        pidfd: Option<&K::Pidfd>,
        start_time: Option<u64>,
    ) -> Option<Arc<Shim<K::Pidfd>>> {
        let entry = entries.get(pid)?;
        let state = entry.state();
        let same = match &state.pidfd {
            Some(pidfd) => !self.kernel.is_reaped(pidfd),
            None => match (
                state.start_time,
                start_time.or_else(|| self.start_time(pid)),
            ) {
                (Some(old), Some(new)) => old == new,
                // Indistinguishable; only a child that was just forked is certainly new.
                _ => role != Role::Owned,
            },
        };
        // Asked last: a process that is not reaped now had the pid all along.
        let is_current = || !pidfd.is_some_and(|pidfd| self.kernel.is_reaped(pidfd));
        (same && is_current()).then(|| Arc::clone(entry))
    }

    fn start_time(&self, pid: u32) -> Option<u64> {
        let stat = self.kernel.stat(pid).ok().flatten();
        stat.map(|stat| stat.start_time)
    }

    /// Returns a future that is ready after `time`, if the worker runs.
    pub(crate) fn sleep(&self, time: Duration) -> Sleep<'_> {
        Sleep::new(&self.timers, &self.wake_worker, time)
    }

    fn warn_without_pidfd(&self, pid: u32, error: &io::Error) {
        if !self.shortage_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                pid,
                %error,
                "cannot open a pidfd for a shim; only interval sweeps check it until a descriptor \
                 is free; raise the limit on open files"
            );
        }
    }

    /// Re-arms the warning about missing pidfds once every shim has one.
    pub(crate) fn note_pidfd_opened(&self) {
        if !self.counters.has_without_pidfd() {
            self.shortage_logged.store(false, Ordering::Relaxed);
        }
    }

    /// Records that a foreign wait in this process reaps children that only the reaper may wait
    /// for.
    pub(crate) fn note_foreign_wait(&self, pid: u32) {
        if !self.foreign_wait_seen.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                pid,
                "a foreign wait reaped a shim; look for code in this process that waits for any \
                 child, or that ignores SIGCHLD"
            );
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Refuses new shims from now on.
    pub(crate) fn refuse(&self) {
        self.refusing.store(true, Ordering::Release);
    }

    /// Returns whether a shutdown has begun, so that no shim may be registered.
    pub(crate) fn is_refusing(&self) -> bool {
        let stop_request = self.stop_request.as_ref();
        self.is_closing()
            || self.refusing.load(Ordering::Acquire)
            || stop_request.is_some_and(|request| request.token.is_cancelled())
    }

    /// Returns the children whose exit is not known. After [`refuse`](Self::refuse) no other child
    /// follows, because `insert` reads the flag under the directory lock.
    pub(crate) fn running_children(&self) -> Vec<Arc<Shim<K::Pidfd>>> {
        let mut shims = self.directory.shims();
        shims.retain(|shim| shim.state().is_running_child());
        shims
    }

    /// Returns the running children that were sent SIGKILL.
    pub(crate) fn killed_children(&self) -> Vec<Arc<Shim<K::Pidfd>>> {
        let mut shims = self.directory.shims();
        shims.retain(|shim| {
            let is_killed = shim.state().is_killed_child();
            is_killed && shim.is_process_running(&self.kernel)
        });
        shims
    }

    /// Begins a stopping shutdown, or joins the one that has begun. Returns when the children are to
    /// be killed, and whether it has begun before.
    pub(crate) fn begin_stop(&self, kill_at: Instant) -> (Instant, bool) {
        self.refuse();
        let mut current = self.kill_at.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = current.is_some();
        let kill_at = current.map_or(kill_at, |current| current.min(kill_at));
        *current = Some(kill_at);
        (kill_at, joined)
    }

    pub(crate) fn has_begun_stop(&self) -> bool {
        let kill_at = self.kill_at.lock();
        kill_at.unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Adds to the shims that the final report lists as killed.
    pub(crate) fn add_killed_pids(&self, pids: &[u32]) {
        self.killed_pids().extend(pids);
    }

    pub(crate) fn take_killed_pids(&self) -> Vec<u32> {
        mem::take(&mut *self.killed_pids()).into_iter().collect()
    }

    fn killed_pids(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.killed_pids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn validate(pid: u32) -> Result<(), RegisterErrorKind> {
    if pid == 0 {
        Err(RegisterErrorKind::Zero)
    } else if pid == std::process::id() {
        Err(RegisterErrorKind::ThisProcess)
    } else if i32::try_from(pid).is_err() {
        Err(RegisterErrorKind::OutOfRange)
    } else {
        Ok(())
    }
}
