use std::io;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::counters::Counters;
use crate::directory::{Directory, Entries, News};
use crate::effects::Effects;
use crate::exits::Subscribers;
use crate::kernel::{NoPidfd, ProcessTable, Target, Waited};
use crate::shim::{Role, Shim};
use crate::{CollectedBy, ReaperClosed, RegisterError, RegisterErrorKind, ShimExit};

/// Takes processes in: whatever registers one commits to it here, without awaiting anything, and
/// the sweep finds it in the directory.
#[derive(Debug)]
pub(crate) struct Intake<K: ProcessTable> {
    pub(crate) kernel: K,
    pub(crate) directory: Directory<K::Pidfd>,
    pub(crate) counters: Counters,
    pub(crate) subscribers: Subscribers,
    /// A child of the embedder's token, so that shutting down the reaper cancels nothing else.
    pub(crate) token: CancellationToken,
    /// Wakes the worker for an arrival that no watch will announce.
    pub(crate) attention: Notify,
    pub(crate) sweep_interval: Duration,
    pub(crate) owner_grace: Duration,
    exhaustion_logged: AtomicBool,
    /// Set once somebody else has collected a child that was ours alone.
    robbed: AtomicBool,
}

impl<K: ProcessTable> Intake<K> {
    pub(crate) fn new(
        kernel: K,
        counters: Counters,
        token: CancellationToken,
        sweep_interval: Duration,
        owner_grace: Duration,
    ) -> Self {
        Self {
            kernel,
            directory: Directory::new(),
            counters,
            subscribers: Subscribers::new(),
            token,
            attention: Notify::new(),
            sweep_interval,
            owner_grace,
            exhaustion_logged: AtomicBool::new(false),
            robbed: AtomicBool::new(false),
        }
    }

    /// Commits to a process by pid. Complete when it returns: it never awaits.
    pub(crate) fn register(
        &self,
        pid: u32,
        role: Role,
    ) -> Result<Arc<Shim<K::Pidfd>>, RegisterError> {
        check(pid).map_err(|kind| RegisterError::new(pid, kind))?;
        let pidfd = self.kernel.open(pid);
        let waitable = match &pidfd {
            Ok(pidfd) if role == Role::Shared => {
                !matches!(self.kernel.peek(Target::Pidfd(pid, pidfd)), Waited::NotOurs)
            }
            _ => true,
        };
        let news = if waitable { News::Quiet } else { News::Urgent };
        self.enroll(pid, role, false, pidfd, news)
            .map_err(|ReaperClosed| RegisterError::new(pid, RegisterErrorKind::Closed))
    }

    /// Forks and commits to the child.
    pub(crate) fn spawn(
        &self,
        command: &mut Command,
        leads_group: bool,
    ) -> io::Result<(Arc<Shim<K::Pidfd>>, Child)> {
        if self.is_closing() {
            return Err(io::Error::other(ReaperClosed));
        }
        let contested = self.robbed.load(Ordering::Relaxed);
        let (mut child, pidfd) = self.kernel.spawn(command, contested)?;
        match self.enroll(child.id(), Role::Owned, leads_group, pidfd, News::Quiet) {
            Ok(shim) => Ok((shim, child)),
            Err(ReaperClosed) => {
                // Closed between the fork and here: undo the fork.
                if child.kill().is_ok() {
                    let _ = child.wait();
                }
                Err(io::Error::other(ReaperClosed))
            }
        }
    }

    /// Takes over a child from its owner.
    pub(crate) fn adopt(
        &self,
        child: &mut Child,
    ) -> Result<Arc<Shim<K::Pidfd>>, RegisterErrorKind> {
        let pid = child.id();
        if self.is_closing() {
            return Err(RegisterErrorKind::Closed);
        }
        let pidfd = self.kernel.open(pid);
        let peek = |pidfd: &Result<K::Pidfd, NoPidfd>| match pidfd {
            Ok(pidfd) => self.kernel.peek(Target::Pidfd(pid, pidfd)),
            Err(_) => self.kernel.peek(Target::Pid(pid)),
        };
        let before = peek(&pidfd);
        // A `Child` that has been waited for remembers its status, and its pid is no longer its
        // own; only trying to wait tells. What is registered already is left to its entry.
        let status = if self.is_registered(pid) {
            None
        } else {
            child.try_wait().ok().flatten()
        };
        if let Some(status) = status {
            let collected_here = matches!(before, Waited::Exited(_) | Waited::Running)
                && matches!(peek(&pidfd), Waited::NotOurs);
            let rusage = match before {
                Waited::Exited(death) if collected_here => Some(death.usage),
                _ => None,
            };
            let collected_by = if collected_here {
                CollectedBy::Reaper
            } else {
                CollectedBy::Owner
            };
            return self
                .enroll_ended(ShimExit {
                    pid,
                    status: Some(status),
                    collected_by,
                    rusage,
                })
                .map_err(|ReaperClosed| RegisterErrorKind::Closed);
        }
        self.enroll(pid, Role::Owned, false, pidfd, News::Quiet)
            .map_err(|ReaperClosed| RegisterErrorKind::Closed)
    }

    fn enroll(
        &self,
        pid: u32,
        role: Role,
        leads_group: bool,
        pidfd: Result<K::Pidfd, NoPidfd>,
        mut news: News,
    ) -> Result<Arc<Shim<K::Pidfd>>, ReaperClosed> {
        let mut start_time = None;
        let mut pidfd = match pidfd {
            Ok(pidfd) => Some(pidfd),
            Err(NoPidfd::NoProcess) => {
                news = News::Absent;
                None
            }
            Err(reason) => {
                if let NoPidfd::Exhausted(error) = &reason {
                    self.pidfd_missing(pid, error);
                }
                match self.kernel.stat(pid) {
                    Ok(Some(stat)) => start_time = Some(stat.start_time),
                    Ok(None) => news = News::Absent,
                    Err(_) => {}
                }
                None
            }
        };
        if news == News::Absent && role == Role::Owned {
            self.note_robbery(pid);
        }
        let mut entries = self.directory.lock();
        // Decided while the directory is locked: the final drain looks into it after the token is
        // cancelled, so nothing slips in behind it.
        if self.is_closing() {
            return Err(ReaperClosed);
        }
        if let Some(known) = self.known(&entries, pid, role, start_time) {
            let mut state = known.state();
            if role > state.role {
                state.role = role;
                drop(state);
                entries.recall(&known);
                drop(entries);
                self.attention.notify_one();
            }
            return Ok(Arc::clone(&known));
        }
        let id = entries.next_id();
        // The watch is set while the directory is locked, and the sweep looks into the directory
        // before it follows a report: it never sees a report of a shim that it cannot find.
        let watched = pidfd.as_ref().map(|fd| self.kernel.watch(fd, id));
        if let Some(Err(error)) = watched {
            self.pidfd_missing(pid, &error);
            pidfd = None;
            start_time = self
                .kernel
                .stat(pid)
                .ok()
                .flatten()
                .map(|stat| stat.start_time);
        }
        if pidfd.is_none() {
            self.counters.lost_pidfd();
        }
        let shim = Arc::new(Shim::new(pid, id, leads_group, role, pidfd, start_time));
        entries.insert(&shim, news);
        self.counters.registered();
        drop(entries);
        if news != News::Quiet {
            self.attention.notify_one();
        }
        Ok(shim)
    }

    /// The entry of this very process, if it has one that is not finished.
    fn known(
        &self,
        entries: &MutexGuard<'_, Entries<K::Pidfd>>,
        pid: u32,
        role: Role,
        start_time: Option<u64>,
    ) -> Option<Arc<Shim<K::Pidfd>>> {
        let known = entries.get(pid)?;
        let state = known.state();
        let same = match &state.pidfd {
            Some(pidfd) => !self.kernel.is_reaped(pidfd),
            None => match (state.start_time, start_time) {
                (Some(known), Some(new)) => known == new,
                // Nothing tells them apart. Only a child that was just forked is surely new.
                _ => role != Role::Owned,
            },
        };
        same.then(|| Arc::clone(known))
    }

    fn is_registered(&self, pid: u32) -> bool {
        let entries = self.directory.lock();
        self.known(&entries, pid, Role::Shared, None).is_some()
    }

    /// A child that had ended before it came to us: counted and published, never registered.
    fn enroll_ended(&self, exit: ShimExit) -> Result<Arc<Shim<K::Pidfd>>, ReaperClosed> {
        let mut effects = Effects::<K::Pidfd>::new(&self.subscribers);
        let mut entries = self.directory.lock();
        // As in `enroll`: the final drain, which ends the streams, comes after this.
        if self.is_closing() {
            return Err(ReaperClosed);
        }
        let id = entries.next_id();
        let shim = Arc::new(Shim::new(exit.pid, id, false, Role::Owned, None, None));
        match exit.collected_by {
            CollectedBy::Reaper => self.counters.reaped(),
            CollectedBy::Owner | CollectedBy::Observed => self.counters.vanished(),
        }
        effects.resolve(&mut shim.state(), exit);
        Ok(shim)
    }

    fn pidfd_missing(&self, pid: u32, error: &io::Error) {
        if !self.exhaustion_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                pid,
                %error,
                "no pidfd for a shim: swept by interval until one is free; raise the limit on open files"
            );
        }
    }

    /// Once all shims have their pidfds, the next shortage is news again.
    pub(crate) fn pidfd_found(&self) {
        if !self.counters.any_without_pidfd() {
            self.exhaustion_logged.store(false, Ordering::Relaxed);
        }
    }

    /// Somebody else in this process collects children that are ours alone.
    pub(crate) fn note_robbery(&self, pid: u32) {
        if !self.robbed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                pid,
                "somebody else collected a shim of ours: look for waits on any child, \
                 or an ignored SIGCHLD, in this process"
            );
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.token.is_cancelled()
    }
}

fn check(pid: u32) -> Result<(), RegisterErrorKind> {
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
