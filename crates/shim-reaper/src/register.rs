use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::adopt::{NoOwner, Owner, Spawner};
use crate::command::sealed::CommandRef;
use crate::directory::{Check, Entries};
use crate::kernel::{NoPidfd, ProcessTable, Spawned, Target, WaitResult};
use crate::outbox::LogLine;
use crate::pipes::Pipes;
use crate::shared::Shared;
use crate::shim::{Groups, NO_PROCESS, Role, Shim};
use crate::sync::MutexGuard;
use crate::{ReaperClosed, ReaperGauge, RegisterError, RegisterErrorKind};

/// The error of a registration after a shutdown has begun, with the pidfd of the process.
#[derive(Debug)]
pub(crate) struct Refused<P>(pub(crate) Option<P>);

/// These methods register processes. They never await: a registration is complete when they return,
/// and the sweep finds it in the directory.
impl<K: ProcessTable> Shared<K> {
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
        command: CommandRef<'_>,
        process_group: Option<i32>,
    ) -> io::Result<(Arc<Shim<K::Pidfd>>, Pipes)> {
        if self.is_refusing() {
            return Err(io::Error::other(ReaperClosed));
        }
        let control_group = command.control_group();
        let groups = Groups {
            leads: process_group == Some(0),
            control: control_group
                .map(|dir| dir.try_clone_to_owned())
                .transpose()?,
        };
        let early_pidfd = self.early_pidfd || self.foreign_wait_seen.load(Ordering::Relaxed);
        let Spawned { pid, pidfd, pipes } =
            self.kernel.spawn(command, process_group, early_pidfd)?;
        let (role, check) = (Role::Owned, Check::OnEvent);
        match self.insert_child(pid, role, groups, pidfd, check, &mut Spawner) {
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
        self.insert_child(pid, role, groups, pidfd, check, &mut NoOwner)
    }

    /// Does what [`insert`](Self::insert) does for a child, and takes from its owner what the reaper
    /// needs to reap it.
    pub(crate) fn insert_child(
        &self,
        pid: u32,
        role: Role,
        groups: Groups,
        pidfd: Result<K::Pidfd, NoPidfd>,
        mut check: Check,
        owner: &mut impl Owner<K::Pidfd>,
    ) -> Result<Arc<Shim<K::Pidfd>>, Refused<K::Pidfd>> {
        let mut start_time = None;
        let takes_pidfd = matches!(pidfd, Err(NoPidfd::Exhausted(_))) && owner.has_pidfd();
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
        if check == Check::NotFound && role == Role::Owned && self.note_foreign_wait() {
            LogLine::ForeignWait { pid }.write();
        }
        let mut registration = self.counters.metrics.begin_registration();
        if pidfd.is_none() && !takes_pidfd {
            registration.add_without_pidfd();
        }
        let mut is_watched = pidfd.is_some();
        let (mut entries, id) = loop {
            let mut entries = self.directory.lock();
            // Checked under the directory lock: the final drain locks it after the token is
            // cancelled, so that no registration comes after the drain.
            if self.is_refusing() {
                return Err(Refused(pidfd));
            }
            let find_same = || self.find_same(&entries, pid, role, pidfd.as_ref(), start_time);
            if let Some(entry) = (!owner.is_new()).then(find_same).flatten() {
                let mut state = entry.state();
                if let Some(child) = owner.take_tokio_child() {
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
            let watched = match pidfd.as_ref().filter(|_| is_watched) {
                Some(fd) => self.kernel.watch(fd, id),
                None => Ok(()),
            };
            let Err(error) = watched else {
                break (entries, id);
            };
            // Unlocked for the log.
            drop(entries);
            self.warn_without_pidfd(pid, &error);
            is_watched = false;
            if check == Check::OnEvent {
                check = Check::Now;
            }
        };
        // Only now, because a child that is refused stays complete. An interval sweep adds its watch.
        if takes_pidfd {
            pidfd = owner.take_pidfd();
        }
        if check == Check::NotFound {
            start_time = Some(NO_PROCESS);
        }
        if pidfd.is_none() {
            self.counters.change(ReaperGauge::WithoutPidfd, 1);
        }
        // The pidfd of a caller may be that of an earlier process with the pid of the entry.
        let has_ended = |pidfd| self.kernel.is_reaped(pidfd);
        let is_earlier = entries.get(pid).is_some() && pidfd.as_ref().is_some_and(has_ended);
        let shim = Shim::new(pid, id, groups.leads, role, pidfd, start_time);
        let shim = Arc::new(shim.in_control_group(groups.control));
        {
            let mut state = shim.state();
            state.is_watched = is_watched;
            state.tokio_child = owner.take_tokio_child();
        }
        if is_earlier {
            entries.insert_earlier(&shim, check);
        } else {
            entries.insert(&shim, check);
        }
        self.counters.change(ReaperGauge::Registered, 1);
        drop(entries);
        registration.complete();
        if check != Check::OnEvent {
            self.wake_worker.notify_one();
        }
        self.log_deferred();
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

#[cfg(test)]
mod tests;
