use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::exits::Subscribers;
use crate::kernel::ProcessTable;
use crate::shim::Shim;
use crate::stats::Counters;
use crate::sync::{Mutex, MutexGuard};
use crate::timers::{Sleep, Timers};

/// The state that registering and sweeping share, and that needs no registry lock.
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
    pub(crate) early_pidfd: bool,
    shortage_logged: AtomicBool,
    /// Whether it is logged that pidfds cannot be opened.
    pidfd_failure_logged: AtomicBool,
    /// Cancelled by the embedder to stop every shim and then shut down.
    pub(crate) stop_request: Option<StopRequest>,
    /// Set when a shutdown begins, before `token` is cancelled.
    refusing: AtomicBool,
    /// When a stopping shutdown that has begun sends SIGKILL.
    kill_at: Mutex<Option<Instant>>,
    /// The shims that the shutdown stops.
    stopping: Mutex<Vec<Arc<Shim<K::Pidfd>>>>,
    /// The shims that the shutdown sent SIGKILL.
    killed_pids: Mutex<BTreeSet<u32>>,
    pub(crate) timers: Timers,
    /// Whether a foreign wait has reaped a child that only the reaper may wait for.
    pub(crate) foreign_wait_seen: AtomicBool,
}

/// A shutdown that stops the shims, which the embedder requests with a token.
#[derive(Debug)]
pub(crate) struct StopRequest {
    pub(crate) token: CancellationToken,
    pub(crate) grace: Duration,
}

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
            pidfd_failure_logged: AtomicBool::new(false),
            stop_request,
            refusing: AtomicBool::new(false),
            kill_at: Mutex::default(),
            stopping: Mutex::default(),
            killed_pids: Mutex::default(),
            timers: Timers::default(),
            foreign_wait_seen: AtomicBool::new(false),
        }
    }

    /// Returns a future that is ready at `deadline` of the clock of the worker, if that runs.
    pub(crate) fn sleep_until(&self, deadline: Option<tokio::time::Instant>) -> Sleep<'_> {
        Sleep::new(&self.timers, &self.wake_worker, deadline)
    }

    pub(crate) fn warn_without_pidfd(&self, pid: u32, error: &io::Error) {
        if !self.shortage_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                pid,
                %error,
                "cannot open or watch the pidfd of a shim; only interval sweeps check it until \
                 that succeeds; raise the limit on open files"
            );
        }
    }

    /// Re-arms the warning about missing pidfds once every shim has one.
    pub(crate) fn note_pidfd_opened(&self) {
        if !self.counters.has_without_pidfd() {
            self.shortage_logged.store(false, Ordering::Relaxed);
        }
    }

    /// Logs what happened while a lock was held. The caller must not hold a lock.
    pub(crate) fn log_deferred(&self) {
        if let Some(error) = self.kernel.pidfd_failure() {
            if !self.pidfd_failure_logged.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "a pidfd cannot be opened; only interval sweeps check the shims without one");
            }
        }
        self.counters.metrics.log_panics();
    }

    /// Records that a foreign wait in this process reaps children that only the reaper may wait
    /// for. Returns whether it is the first.
    pub(crate) fn note_foreign_wait(&self) -> bool {
        !self.foreign_wait_seen.swap(true, Ordering::Relaxed)
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

    /// Sets the shims that the final report counts once they have ended. After
    /// [`refuse`](Self::refuse) none is registered, so that the first shutdown stops all.
    pub(crate) fn set_stopping(&self, shims: Vec<Arc<Shim<K::Pidfd>>>) {
        *self.stopping() = shims;
    }

    pub(crate) fn count_stopped(&self) -> u64 {
        let mut shims = mem::take(&mut *self.stopping());
        shims.retain(|shim| matches!(shim.state().outcome(), Ok(Some(_))));
        shims.len() as u64
    }

    fn stopping(&self) -> MutexGuard<'_, Vec<Arc<Shim<K::Pidfd>>>> {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::Role;
    use crate::simulation::fixture::{LATEST, core, register, sweep};

    #[test]
    fn shortage_is_logged_again_after_every_shim_has_had_a_pidfd() {
        let core = core(LATEST);
        let kernel = &core.shared.kernel;
        for pid in [7, 8, 9] {
            kernel.fork(pid);
        }
        // Opens the epoll.
        register(&core, 9, Role::Owned);
        let is_logged = || core.shared.shortage_logged.load(Ordering::Relaxed);
        kernel.limit_descriptors(0);
        register(&core, 7, Role::Owned);
        register(&core, 8, Role::Owned);
        assert!(is_logged());
        kernel.limit_descriptors(1);
        sweep(&core);
        assert!(is_logged(), "a shim has no pidfd");
        kernel.limit_descriptors(1);
        sweep(&core);
        assert!(!is_logged());
    }
}
