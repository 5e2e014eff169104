use std::process::ExitStatus;
use std::time::Duration;

use crate::kernel::{ProcessTable, Target, WaitResult};
use crate::registry::Phase;
use crate::shim::{Role, State};
use crate::sys::ChildExit;
use crate::{ReapedBy, ReaperCounter};

/// What [`judge`] has to know about a shim.
#[derive(Debug)]
pub(crate) struct Case<'a, P> {
    pub(crate) pid: u32,
    pub(crate) state: &'a State<P>,
    pub(crate) phase: Phase,
    pub(crate) trigger: Trigger,
    pub(crate) owner_grace: Duration,
    /// Whether to compare the start time of a running shim that has no pidfd.
    pub(crate) compare_identity: bool,
}

/// The reason why a shim is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// Its watch reported an event and has to be re-armed, or its registration requested the check.
    Event,
    /// An interval sweep reached it.
    Sweep,
    /// Its grace period has expired, or the reaper is shutting down.
    GraceExpired,
}

/// The result of a check.
#[derive(Debug)]
pub(crate) enum Verdict {
    Running {
        /// Whether the start time was compared.
        identity_compared: bool,
    },
    /// Dead, but not finished: its owner may still wait for it, or the kernel may still publish its
    /// status.
    DeferToOwner(Option<ChildExit>),
    /// Dead, but not waitable before its tracer has waited for it; with its status if that is known.
    HeldByTracer(Option<ExitStatus>),
    /// Reaped by [`judge`].
    Reaped(ChildExit),
    /// Reaped by another wait, or not a child of this process.
    Vanished(Option<ExitStatus>, ReapedBy),
}

/// Decides what to do with a shim. Reaps its zombie unless its owner may still wait for it; has no
/// other effect.
pub(crate) fn judge<K: ProcessTable>(kernel: &K, case: &Case<'_, K::Pidfd>) -> Verdict {
    match (case.phase, case.state.role, &case.state.pidfd) {
        (Phase::NotFound, Role::Attached, _) => Verdict::Vanished(None, ReapedBy::Unknown),
        (Phase::NotFound, ..) => Verdict::Vanished(None, case.other_wait()),
        (_, Role::Attached, Some(pidfd)) => judge_attached(kernel, case, pidfd),
        (_, Role::Attached, None) => judge_attached_by_pid(kernel, case),
        (_, _, Some(pidfd)) => judge_child(kernel, case, pidfd),
        (_, _, None) => judge_child_by_pid(kernel, case),
    }
}

fn judge_child<K: ProcessTable>(
    kernel: &K,
    case: &Case<'_, K::Pidfd>,
    pidfd: &K::Pidfd,
) -> Verdict {
    let owner_comes_first = case.owner_comes_first();
    let wait = || {
        if owner_comes_first {
            kernel.peek(Target::Pidfd(case.pid, pidfd))
        } else {
            case.reap(kernel)
        }
    };
    let mut result = wait();
    let mut exited = false;
    if matches!(result, WaitResult::Running) && kernel.has_exited(pidfd) {
        // Repeated, because it may have exited after the first wait.
        exited = true;
        result = wait();
    }
    match result {
        WaitResult::Running if exited => {
            Verdict::HeldByTracer(status_of_zombie(kernel, case.pid, pidfd))
        }
        WaitResult::Running => RUNNING,
        WaitResult::Exited(exit) if owner_comes_first => Verdict::DeferToOwner(Some(exit)),
        WaitResult::Exited(exit) => case.reaped(exit),
        WaitResult::NotWaitable => judge_not_waitable(kernel, case, pidfd),
    }
}

/// Returns the wait status of a zombie that cannot be waited for, or `None` if this process may not
/// inspect it.
fn status_of_zombie<K: ProcessTable>(kernel: &K, pid: u32, pidfd: &K::Pidfd) -> Option<ExitStatus> {
    let stat = kernel.stat(pid).ok()??;
    // Checked after `stat`: if it is not reaped now, the pid was its own then.
    stat.status.filter(|_| !kernel.is_reaped(pidfd))
}

/// Judges a process that cannot be waited for: a foreign wait has reaped it or is reaping it, or it
/// is not a child of this process.
fn judge_not_waitable<K: ProcessTable>(
    kernel: &K,
    case: &Case<'_, K::Pidfd>,
    pidfd: &K::Pidfd,
) -> Verdict {
    // In this order: the kernel publishes the status before it releases the process.
    let reaped = kernel.is_reaped(pidfd);
    let status = kernel.exit_status(pidfd);
    if reaped || status.is_some() {
        return Verdict::Vanished(status, case.other_wait());
    }
    let alive = case.phase != Phase::Deferred && !kernel.has_exited(pidfd);
    if alive {
        Verdict::Vanished(None, ReapedBy::Observed)
    } else if case.trigger == Trigger::GraceExpired {
        Verdict::Vanished(None, case.other_wait())
    } else {
        Verdict::DeferToOwner(None)
    }
}

fn judge_child_by_pid<K: ProcessTable>(kernel: &K, case: &Case<'_, K::Pidfd>) -> Verdict {
    let vanished = Verdict::Vanished(None, case.other_wait());
    match kernel.peek(Target::Pid(case.pid)) {
        WaitResult::NotWaitable if case.phase == Phase::Deferred => vanished,
        WaitResult::NotWaitable => match kernel.stat(case.pid) {
            Ok(Some(stat)) if case.state.is_same_process(&stat) && !stat.exited => {
                Verdict::Vanished(None, ReapedBy::Observed)
            }
            _ => vanished,
        },
        WaitResult::Running if case.compare_identity => match kernel.stat(case.pid) {
            Ok(Some(stat)) if case.state.is_same_process(&stat) => IDENTITY_COMPARED,
            Err(_) => IDENTITY_COMPARED,
            Ok(_) => vanished,
        },
        WaitResult::Running => RUNNING,
        WaitResult::Exited(exit) => match kernel.stat(case.pid) {
            Ok(Some(stat)) if !case.state.is_same_process(&stat) => vanished,
            Ok(None) => vanished,
            _ if case.owner_comes_first() => Verdict::DeferToOwner(Some(exit)),
            _ => match case.reap(kernel) {
                WaitResult::Exited(exit) => case.reaped(exit),
                WaitResult::Running | WaitResult::NotWaitable => vanished,
            },
        },
    }
}

fn judge_attached<K: ProcessTable>(
    kernel: &K,
    case: &Case<'_, K::Pidfd>,
    pidfd: &K::Pidfd,
) -> Verdict {
    let stat = kernel.stat(case.pid);
    // Checked after `stat`: if it is not reaped now, the pid was its own then.
    if kernel.is_reaped(pidfd) {
        return Verdict::Vanished(kernel.exit_status(pidfd), ReapedBy::Observed);
    }
    match stat {
        Ok(Some(stat)) if !stat.exited => RUNNING,
        Ok(Some(stat)) if stat.status.is_some() => {
            Verdict::Vanished(stat.status, ReapedBy::Observed)
        }
        // Out of descriptors.
        Err(_) if case.trigger == Trigger::Sweep || !kernel.has_exited(pidfd) => RUNNING,
        _ if case.trigger == Trigger::GraceExpired => Verdict::Vanished(None, ReapedBy::Observed),
        _ => Verdict::DeferToOwner(None),
    }
}

fn judge_attached_by_pid<K: ProcessTable>(kernel: &K, case: &Case<'_, K::Pidfd>) -> Verdict {
    match kernel.stat(case.pid) {
        Ok(Some(stat)) if case.state.is_same_process(&stat) => {
            if stat.exited {
                Verdict::Vanished(stat.status, ReapedBy::Observed)
            } else {
                RUNNING
            }
        }
        Err(_) => RUNNING,
        Ok(_) => Verdict::Vanished(None, ReapedBy::Observed),
    }
}

const RUNNING: Verdict = Verdict::Running {
    identity_compared: false,
};

const IDENTITY_COMPARED: Verdict = Verdict::Running {
    identity_compared: true,
};

impl<P> Case<'_, P> {
    /// Reaps the process if it has exited.
    fn reap<K: ProcessTable<Pidfd = P>>(&self, kernel: &K) -> WaitResult {
        let target = self.state.wait_target(self.pid);
        let Some(child) = &self.state.tokio_child else {
            return kernel.reap(target);
        };
        let result = kernel.peek(target);
        if matches!(result, WaitResult::Exited(_)) {
            child.reap();
        }
        result
    }

    /// Returns the verdict on a child that [`reap`](Self::reap) has found dead.
    fn reaped(&self, exit: ChildExit) -> Verdict {
        let child = self.state.tokio_child.as_ref();
        if child.is_some_and(|child| !child.is_reaped()) {
            // A foreign wait came first, and its status is that of the zombie.
            return Verdict::Vanished(Some(exit.status), self.other_wait());
        }
        Verdict::Reaped(exit)
    }

    fn owner_comes_first(&self) -> bool {
        self.state.role == Role::Shared
            && self.trigger != Trigger::GraceExpired
            && !self.owner_grace.is_zero()
    }

    /// Returns whose wait it was, if another one has reaped the process.
    fn other_wait(&self) -> ReapedBy {
        if self.state.role == Role::Owned {
            ReapedBy::ForeignWait
        } else {
            ReapedBy::Owner
        }
    }

    /// Returns the counter of a shim that has vanished.
    pub(crate) fn counter(&self, reaped_by: ReapedBy) -> ReaperCounter {
        match reaped_by {
            ReapedBy::ForeignWait => ReaperCounter::ForeignWaits,
            _ if self.phase == Phase::NotFound => ReaperCounter::Unknown,
            ReapedBy::Observed if self.state.role == Role::Attached => ReaperCounter::Observed,
            ReapedBy::Observed | ReapedBy::Unknown => ReaperCounter::Unknown,
            ReapedBy::Owner | ReapedBy::Reaper => ReaperCounter::OwnerReaped,
        }
    }

    /// Returns whether this verdict means that a foreign wait reaped a child that only the reaper
    /// may wait for.
    pub(crate) fn shows_foreign_wait(&self, verdict: &Verdict) -> bool {
        self.state.role == Role::Owned
            && self.state.pidfd.is_some()
            && matches!(verdict, Verdict::DeferToOwner(_) | Verdict::Vanished(..))
    }
}

#[cfg(test)]
mod tests;
