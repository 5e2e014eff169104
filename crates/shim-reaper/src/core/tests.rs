//! Log lines and reports come when a subscriber or metrics of the embedder may call the reaper.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::{CLOSE_TIMEOUT, Core};
use crate::kernel::ProcessTable;
use crate::kernel::simulated::{Failure, Features, ProcessState, Simulated, SimulatedEvents};
use crate::metrics::MetricsReporter;
use crate::readiness::KernelEvents;
use crate::shared::Shared;
use crate::shim::Role;
use crate::simulation::fixture::{INTERVAL, LATEST, core, counts, register, sweep};
use crate::stats::Counters;
use crate::{Metrics, ReaperCounter, ReaperGauge};

fn core_with(metrics: impl Metrics) -> Arc<Core<Simulated>> {
    Arc::new(Core::new(Shared::new(
        Simulated::new(LATEST),
        Counters::new(MetricsReporter::new(metrics)),
        CancellationToken::new(),
        INTERVAL,
        INTERVAL,
        true,
        None,
    )))
}

fn has_lock(core: &Core<Simulated>) -> bool {
    let directory = &core.shared.directory;
    directory.is_locked()
        || directory.shims().iter().any(|shim| shim.is_locked())
        || core.inspect_registry(|_| ()).is_none()
}

/// Records each log line, and whether a lock was held then.
#[derive(Clone)]
struct Lines {
    core: Weak<Core<Simulated>>,
    lines: Arc<Mutex<Vec<(String, bool)>>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        let mut message = Message::default();
        event.record(&mut message);
        self.lines
            .lock()
            .unwrap()
            .push((message.0, has_lock(&core)));
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

struct PanickingMetrics;

impl Metrics for PanickingMetrics {
    fn increment(&self, _: ReaperCounter, _: u64) {
        resume_unwind(Box::new("metrics"));
    }

    fn adjust(&self, _: ReaperGauge, _: i64) {
        resume_unwind(Box::new("metrics"));
    }
}

#[test]
fn every_log_line_is_written_without_a_lock() {
    let core = core_with(PanickingMetrics);
    let kernel = &core.shared.kernel;
    let lines = Lines {
        core: Arc::downgrade(&core),
        lines: Arc::default(),
    };
    // With one dispatcher in the process, tracing would ask that of the thread which reaches a log line
    // first, and that may be the thread of another test.
    let _second = Dispatch::new(NoSubscriber::default());
    let subscriber = tracing_subscriber::registry().with(lines.clone());
    tracing::subscriber::with_default(subscriber, || {
        for pid in 7..=9 {
            kernel.fork(pid);
        }
        kernel.fail_next(Failure::Watch);
        register(&core, 7, Role::Owned);
        register(&core, 8, Role::Owned);
        register(&core, 9, Role::Shared);
        kernel.fail_next(Failure::Ready);
        sweep(&core);
        kernel.set(8, ProcessState::Reaped(0));
        kernel.set(9, ProcessState::Zombie(0));
        kernel.fail_next(Failure::Rearm);
        sweep(&core);
        core.try_close().unwrap();
    });
    let lines = lines.lines.lock().unwrap();
    for expected in [
        "cannot open or watch the pidfd of a shim",
        "cannot read process events",
        "cannot re-arm a watch",
        "a foreign wait reaped a shim",
        "the metrics of the reaper panicked",
        "shim ended",
        "reaper shut down",
    ] {
        let found = lines.iter().any(|(line, _)| line.starts_with(expected));
        assert!(found, "{expected}: {lines:?}");
    }
    assert!(!lines.iter().any(|(_, has_lock)| *has_lock), "{lines:?}");
}

/// Records how many shims are registered when one more is reported.
#[derive(Default)]
struct Registrations {
    core: OnceLock<Weak<Core<Simulated>>>,
    reports: Mutex<Vec<(ReaperGauge, usize)>>,
}

impl Metrics for Registrations {
    fn increment(&self, _: ReaperCounter, _: u64) {}

    fn adjust(&self, gauge: ReaperGauge, by: i64) {
        let core = self.core.get().and_then(Weak::upgrade).unwrap();
        if by > 0 {
            let registered = core.shared.directory.pids().len();
            self.reports.lock().unwrap().push((gauge, registered));
        }
    }
}

/// Otherwise the worker could report the end of a shim first, and the gauge would be negative.
#[test]
fn a_shim_without_a_pidfd_is_reported_before_it_is_registered() {
    let metrics = Arc::new(Registrations::default());
    let core = core_with(Arc::clone(&metrics));
    metrics.core.set(Arc::downgrade(&core)).unwrap();
    let kernel = &core.shared.kernel;
    kernel.fork(7);
    kernel.fail_next(Failure::Open);
    register(&core, 7, Role::Owned);
    kernel.fork(8);
    kernel.limit_descriptors(0);
    register(&core, 8, Role::Owned);
    let expected = [
        (ReaperGauge::Registered, 0),
        (ReaperGauge::WithoutPidfd, 0),
        (ReaperGauge::Registered, 1),
        (ReaperGauge::WithoutPidfd, 1),
    ];
    assert_eq!(*metrics.reports.lock().unwrap(), expected);
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn blocking_sweep_finds_every_exit() {
    let core = core(Features {
        pidfds: false,
        ..LATEST
    });
    // More than one slice checks.
    for pid in 1_000_000..1_000_300 {
        core.shared.kernel.fork(pid);
        register(&core, pid, Role::Owned);
        core.shared.kernel.set(pid, ProcessState::Zombie(0));
    }
    core.sweep_blocking();
    assert_eq!(counts(&core), (300, 0, 0));
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes")]
fn blocking_close_times_out_while_the_registry_is_locked() {
    let core = core(LATEST);
    core.shared.kernel.fork(7);
    register(&core, 7, Role::Owned);
    let start = core.shared.kernel.now();
    let locked = core.registry.try_lock().unwrap();
    assert_eq!(core.close_blocking().still_running, [7]);
    assert!(core.shared.kernel.now() >= start + CLOSE_TIMEOUT);
    assert!(locked.closed.is_none());
}

#[test]
fn kernel_reaps_nothing_after_the_final_drain() {
    let core = core(Features {
        io_uring: true,
        ..LATEST
    });
    let kernel = &core.shared.kernel;
    let events = SimulatedEvents::new(kernel, INTERVAL);
    let process = kernel.fork(7);
    register(&core, 7, Role::Owned);
    sweep(&core);
    // The worker waits in the kernel.
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while events.poll_event(&mut cx).is_ready() {
        sweep(&core);
    }
    assert_eq!(core.try_close().unwrap().still_running, [7]);
    kernel.set(7, ProcessState::Zombie(3));
    kernel.reap_in_kernel();
    assert!(!kernel.process(process).state.is_reaped());
}
