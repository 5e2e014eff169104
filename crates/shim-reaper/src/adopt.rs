use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

use crate::directory::Check;
use crate::kernel::{NoPidfd, ProcessTable, Target, WaitResult};
use crate::outbox::Outbox;
use crate::register::Refused;
use crate::shared::Shared;
use crate::shim::{Groups, Role, Shim};
use crate::tokio_child::TokioChild;
use crate::{ReapedBy, ReaperClosed, ReaperCounter, RegisterErrorKind, ShimExit};

/// The owner of a child, which passes it to the reaper.
pub(crate) trait Owner<P> {
    /// Waits as the owner does: returns the status from an earlier wait, or reaps the child if it has
    /// exited.
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>>;

    /// Returns whether the child is new, so that no earlier registration can be that of the child.
    fn is_new(&self) -> bool {
        false
    }

    /// Returns whether the owner has a pidfd of its own.
    fn has_pidfd(&self) -> bool {
        false
    }

    /// Takes the pidfd of the owner, if no descriptor is left for a duplicate.
    fn take_pidfd(&mut self) -> Option<P> {
        None
    }

    /// Takes the child, if the reaper has to reap it through tokio.
    fn take_tokio_child(&mut self) -> Option<TokioChild> {
        None
    }
}

/// No owner: the reaper knows the process by its pid or its pidfd.
pub(crate) struct NoOwner;

impl<P> Owner<P> for NoOwner {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        Ok(None)
    }
}

/// The reaper itself, which has just spawned the child.
pub(crate) struct Spawner;

impl<P> Owner<P> for Spawner {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        Ok(None)
    }

    fn is_new(&self) -> bool {
        true
    }
}

#[cfg(any(test, feature = "simulation"))]
impl<P, F: FnMut() -> Option<ExitStatus>> Owner<P> for F {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        Ok(self())
    }
}

impl<K: ProcessTable> Shared<K> {
    /// Takes over a child from its owner. `pidfd` is that of the owner, if it has one.
    pub(crate) fn adopt(
        &self,
        pid: u32,
        pidfd: Option<K::Pidfd>,
        owner: &mut impl Owner<K::Pidfd>,
    ) -> Result<Arc<Shim<K::Pidfd>>, RegisterErrorKind> {
        if self.is_refusing() {
            return Err(RegisterErrorKind::Closed);
        }
        let pidfd = pidfd.map_or_else(|| self.kernel.open(pid), |pidfd| self.kernel.accept(pidfd));
        let peek = |pidfd: &Result<K::Pidfd, NoPidfd>| match pidfd {
            Ok(pidfd) => self.kernel.peek(Target::Pidfd(pid, pidfd)),
            Err(_) => self.kernel.peek(Target::Pid(pid)),
        };
        let before = peek(&pidfd);
        // A `Child` that its owner has waited for caches its status, and the kernel may have
        // recycled its pid; only `try_wait` shows this. A registered pid is left to its entry.
        let status = if self.is_registered(pid, pidfd.as_ref().ok()) {
            None
        } else {
            owner.try_wait().ok().flatten()
        };
        if let Some(status) = status {
            let reaped_here = matches!(before, WaitResult::Exited(_) | WaitResult::Running)
                && matches!(peek(&pidfd), WaitResult::NotWaitable);
            let rusage = match before {
                WaitResult::Exited(exit) if reaped_here => exit.usage,
                _ => None,
            };
            let reaped_by = if reaped_here {
                ReapedBy::Reaper
            } else {
                ReapedBy::Owner
            };
            return self
                .publish_ended(ShimExit {
                    pid,
                    status: Some(status),
                    reaped_by,
                    rusage,
                })
                .map_err(|ReaperClosed| RegisterErrorKind::Closed);
        }
        let groups = Groups::default();
        self.insert_child(pid, Role::Owned, groups, pidfd, Check::OnEvent, owner)
            .map_err(|Refused(_)| RegisterErrorKind::Closed)
    }

    fn is_registered(&self, pid: u32, pidfd: Option<&K::Pidfd>) -> bool {
        let entries = self.directory.lock();
        let same = self.find_same(&entries, pid, Role::Shared, pidfd, None);
        same.is_some()
    }

    /// Counts and publishes the exit of a child that had ended before its registration. The child
    /// never enters the directory.
    fn publish_ended(&self, exit: ShimExit) -> Result<Arc<Shim<K::Pidfd>>, ReaperClosed> {
        let mut outbox = Outbox::new();
        let mut entries = self.directory.lock();
        // As in `insert`: the final drain, which ends the streams, comes after this.
        if self.is_refusing() {
            return Err(ReaperClosed);
        }
        let id = entries.next_id();
        let shim = Arc::new(Shim::new(exit.pid, id, false, Role::Owned, None, None));
        let counter = match exit.reaped_by {
            ReapedBy::Reaper => ReaperCounter::Reaped,
            _ => ReaperCounter::OwnerReaped,
        };
        self.counters.count(counter);
        outbox.resolve(&self.subscribers, &mut shim.state(), exit);
        drop(entries);
        self.counters.metrics.increment(counter);
        Ok(shim)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::kernel::simulated::{Descriptor, ProcessState};
    use crate::simulation::fixture::{LATEST, core, register, sweep};

    #[test]
    fn usage_of_a_child_that_its_owner_reaps_when_it_is_adopted_is_known() {
        let core = core(LATEST);
        let kernel = &core.shared.kernel;
        let process = kernel.fork(7);
        kernel.set(7, ProcessState::Zombie(3));
        let mut owner = || kernel.wait_elsewhere(process);
        let shim = core.shared.adopt(7, None, &mut owner).unwrap();
        let exit = shim.state().exit().unwrap();
        assert_eq!(exit.reaped_by, ReapedBy::Reaper);
        assert!(exit.rusage.is_some());
    }

    #[test]
    fn usage_of_another_child_with_the_pid_is_not_reported() {
        let core = core(LATEST);
        let kernel = &core.shared.kernel;
        let process = kernel.fork(7);
        kernel.set(7, ProcessState::Zombie(4));
        // From an earlier wait for the child that had the pid.
        let mut owner = || Some(ExitStatus::from_raw(3 << 8));
        let shim = core.shared.adopt(7, None, &mut owner).unwrap();
        let exit = shim.state().exit().unwrap();
        assert_eq!(exit.reaped_by, ReapedBy::Owner);
        assert_eq!((exit.code(), exit.rusage), (Some(3), None));
        assert!(!kernel.process(process).state.is_reaped());
    }

    #[test]
    fn registered_child_is_not_waited_for_when_it_is_adopted() {
        let core = core(LATEST);
        let kernel = &core.shared.kernel;
        let process = kernel.fork(7);
        let registered = register(&core, 7, Role::Shared);
        kernel.set(7, ProcessState::Zombie(3));
        let mut owner = || kernel.wait_elsewhere(process);
        let adopted = core.shared.adopt(7, None, &mut owner).unwrap();
        assert!(Arc::ptr_eq(&registered, &adopted));
        assert!(!kernel.process(process).state.is_reaped());
    }

    /// An owner with a pidfd.
    struct Holder(Option<Descriptor>);

    impl Owner<Descriptor> for Holder {
        fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
            Ok(None)
        }

        fn has_pidfd(&self) -> bool {
            self.0.is_some()
        }

        fn take_pidfd(&mut self) -> Option<Descriptor> {
            self.0.take()
        }
    }

    #[test]
    fn pidfd_of_an_owner_is_taken_if_there_is_no_descriptor_for_another() {
        let core = core(LATEST);
        let kernel = &core.shared.kernel;
        kernel.fork(7);
        let mut owner = Holder(Some(kernel.open_now(7).unwrap()));
        kernel.limit_descriptors(0);
        let shim = core.shared.adopt(7, None, &mut owner).unwrap();
        assert_eq!(core.shared.counters.snapshot(true).without_pidfd, 0);
        kernel.set(7, ProcessState::Reaped(3));
        sweep(&core);
        let exit = shim.state().exit().unwrap();
        assert_eq!(exit.code(), Some(3));
    }

    #[test]
    fn owner_keeps_its_pidfd_if_the_child_is_refused() {
        let core = core(LATEST);
        let kernel = &core.shared.kernel;
        kernel.fork(7);
        let mut owner = Holder(Some(kernel.open_now(7).unwrap()));
        kernel.limit_descriptors(0);
        core.shared.token.cancel();
        assert!(core.shared.adopt(7, None, &mut owner).is_err());
        assert!(owner.has_pidfd());
    }
}
