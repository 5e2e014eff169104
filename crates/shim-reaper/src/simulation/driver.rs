//! The worker of the reaper, and what becomes of it.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::config::INTERVAL;
use super::run::{Simulation, lock};
use crate::core::Core;
use crate::drive::{Drive, restart_on_panic};
use crate::kernel::ProcessTable;
use crate::kernel::simulated::{Mechanism, Simulated, SimulatedEvents};
use crate::readiness::{Alarm, Host, KernelEvents, TokioAlarm};

/// How often the worker may run without a pause. A sweep yields after each of its slices.
pub(super) const MAX_POLLS: u32 = 200;

/// The worker of the reaper, as `Worker` is in production.
struct SimulatedWorker(Arc<Core<Simulated>>);

impl Drive for SimulatedWorker {
    type Kernel = Simulated;

    fn core(&self) -> &Arc<Core<Simulated>> {
        &self.0
    }

    fn can_stop(&self) -> bool {
        false
    }
}

impl Host for SimulatedWorker {
    fn kernel_events(&self) -> impl KernelEvents {
        SimulatedEvents::new(&self.0.shared.kernel, INTERVAL)
    }

    fn alarm(&self) -> impl Alarm {
        TokioAlarm::new()
    }
}

impl Simulation {
    /// Runs the worker until it waits.
    pub(super) async fn run_worker(&self) {
        for _ in 0..MAX_POLLS {
            if !self.poll_worker() {
                return;
            }
            tokio::task::yield_now().await;
        }
        self.world().fail("the worker does not stop to run".into());
    }

    pub(super) fn start_worker(&self) {
        let worker = SimulatedWorker(Arc::clone(&self.core));
        let task = async move { restart_on_panic(&worker, &worker).await };
        // The worker may run often while a thread blocks, which is one step for tokio.
        *lock(&self.worker) = Some(Box::pin(tokio::task::unconstrained(task)));
        self.wake_worker();
    }

    /// Drops the task of the worker, as its tokio runtime does.
    pub(super) fn drop_worker(&self) {
        let task = lock(&self.worker).take();
        drop(task);
    }

    /// Drops the tokio runtime of the worker. A thread takes over.
    pub(super) fn drop_runtime(&self) {
        if self.has_worker() {
            self.drop_worker();
            self.move_to_thread();
        }
    }

    /// Does what a use of the reaper does if the worker does not run.
    pub(super) fn ensure_worker(&self) {
        if std::mem::take(&mut self.world().lacks_worker) {
            self.move_to_thread();
        }
    }

    fn move_to_thread(&self) {
        let this = self.this.clone();
        let start = move || {
            if let Some(this) = this.upgrade() {
                this.start_worker();
            }
        };
        self.world().lacks_worker = self.kernel().spawn_thread(start).is_err();
        self.expect_delay(INTERVAL);
    }

    pub(super) fn has_worker(&self) -> bool {
        lock(&self.worker).is_some()
    }

    fn wake_worker(&self) {
        Waker::from(Arc::clone(&self.worker_flag)).wake();
    }

    /// Polls the worker if it was woken. Returns whether it was.
    pub(super) fn poll_worker(&self) -> bool {
        let Some(mut task) = lock(&self.worker).take() else {
            return false;
        };
        let woken = self.worker_flag.take();
        let mut poll = Poll::Pending;
        let panics = self.world().panics;
        if woken {
            self.set_runs_worker(true);
            let waker = Waker::from(Arc::clone(&self.worker_flag));
            poll = task.as_mut().poll(&mut Context::from_waker(&waker));
            self.set_runs_worker(false);
        }
        let has_died =
            self.config.features.lacks(Mechanism::Restart) && self.world().panics > panics;
        if poll.is_pending() && !has_died {
            *lock(&self.worker) = Some(task);
        }
        woken
    }
}
