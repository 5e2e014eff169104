//! The reaper reports to the embedder's metrics all that its stats count, and depends on nothing that
//! they do.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use common::recorder::Recorder;
use common::{
    DEADLINE, Fixture, KillOnDrop, eventually, exits_on_eof, exits_with, is_waitable, is_zombie,
    sleeper,
};
use shim_reaper::{
    Metrics, ReaperBuilder, ReaperCounter, ReaperGauge, ShimHandle, ShimReaper, SpawnOptions,
};

in_both_modes!(
    every_event_is_reported,
    reapers_report_their_sums_to_shared_metrics,
    a_registration_that_adds_no_shim_reports_no_change,
    a_shim_is_reported_before_it_is_registered,
    an_exit_is_reported_before_its_handle_resolves,
    metrics_may_call_the_reaper,
    metrics_that_panic_do_not_affect_the_reaper,
);

async fn every_event_is_reported(builder: ReaperBuilder) {
    let fixture = Fixture::new(
        builder
            .owner_grace(DEADLINE)
            .sweep_interval(Duration::from_millis(20)),
    );
    fixture.reaper.spawn(exits_with(0)).unwrap().await.unwrap();
    // Ended, but not reaped, before its registration.
    let ended = exits_with(0).spawn().unwrap();
    eventually("the child exits", || is_zombie(ended.id())).await;
    fixture.reaper.register_child(ended).unwrap().await.unwrap();
    let mut owned = KillOnDrop::default();
    drop(fixture.reaper.register(owned.spawn(sleeper()).unwrap()));
    drop(owned);
    let mut attached = KillOnDrop::default();
    drop(fixture.reaper.attach(attached.spawn(sleeper()).unwrap()));
    drop(attached);
    // No process has this pid.
    drop(fixture.reaper.register(i32::MAX as u32));
    let mut running = KillOnDrop::default();
    drop(fixture.reaper.register(running.spawn(sleeper()).unwrap()));
    fixture.expect(2, 3, 1).await;
    fixture.sweeps(2).await;
    fixture.reaper.shutdown().await;
    fixture.expect(2, 3, 0).await;
    let sums = fixture.recorder.sums();
    for counter in [
        ReaperCounter::OwnerReaped,
        ReaperCounter::Observed,
        ReaperCounter::Unknown,
    ] {
        assert_eq!(sums[counter.name()], 1, "{counter:?}");
    }
    assert!(sums[ReaperCounter::Sweeps.name()] >= 2);
}

async fn reapers_report_their_sums_to_shared_metrics(builder: ReaperBuilder) {
    let recorder = Arc::new(Recorder::default());
    let builder = builder.metrics(Arc::clone(&recorder));
    let reapers = [builder.clone().start(), builder.start()];
    for reaper in &reapers {
        reaper.spawn(exits_with(0)).unwrap().await.unwrap();
    }
    assert_eq!(recorder.sums()[ReaperCounter::Reaped.name()], 2);
    let handles = reapers.each_ref().map(spawn_sleeper);
    assert_eq!(recorder.sums()[ReaperGauge::Registered.name()], 2);
    for handle in handles {
        handle.kill().await.unwrap();
    }
    assert_eq!(recorder.sums()[ReaperGauge::Registered.name()], 0);
}

async fn a_registration_that_adds_no_shim_reports_no_change(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut children = KillOnDrop::default();
    let pid = children.spawn(sleeper()).unwrap();
    for _ in 0..3 {
        drop(fixture.reaper.register(pid).unwrap());
        fixture.expect(0, 0, 1).await;
    }
    fixture.reaper.shutdown().await;
    fixture.reaper.register(pid).unwrap_err();
    fixture.expect(0, 0, 0).await;
}

/// Spawns a shim that is killed with its handle, even if the test fails.
fn spawn_sleeper(reaper: &ShimReaper) -> ShimHandle {
    let options = SpawnOptions::new().kill_on_drop(true);
    reaper.spawn_with(sleeper(), options).unwrap()
}

/// Metrics that call a closure with the name of each change, and with the reaper once it is set.
struct OnReport<F> {
    reaper: Arc<OnceLock<ShimReaper>>,
    report: F,
}

impl<F: Fn(&ShimReaper, &str, i64) + Send + Sync + 'static> OnReport<F> {
    fn start(builder: ReaperBuilder, report: F) -> ShimReaper {
        let reaper = Arc::new(OnceLock::new());
        let metrics = Self {
            reaper: Arc::clone(&reaper),
            report,
        };
        reaper
            .get_or_init(|| builder.metrics(metrics).start())
            .clone()
    }

    fn call(&self, name: &str, by: i64) {
        if let Some(reaper) = self.reaper.get() {
            (self.report)(reaper, name, by);
        }
    }
}

impl<F: Fn(&ShimReaper, &str, i64) + Send + Sync + 'static> Metrics for OnReport<F> {
    fn increment(&self, counter: ReaperCounter, by: u64) {
        self.call(counter.name(), i64::try_from(by).unwrap());
    }

    fn adjust(&self, gauge: ReaperGauge, by: i64) {
        self.call(gauge.name(), by);
    }
}

/// Otherwise the worker could report the end of a shim first, and the gauge would be negative.
async fn a_shim_is_reported_before_it_is_registered(builder: ReaperBuilder) {
    let counts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&counts);
    let reaper = OnReport::start(builder, move |reaper, name, by| {
        if name == ReaperGauge::Registered.name() && by > 0 {
            seen.lock().unwrap().push(reaper.registered().len());
        }
    });
    let handles = [(); 2].map(|()| spawn_sleeper(&reaper));
    assert_eq!(*counts.lock().unwrap(), [0, 1]);
    for handle in handles {
        handle.kill().await.unwrap();
    }
}

async fn an_exit_is_reported_before_its_handle_resolves(builder: ReaperBuilder) {
    let shim = Arc::new(OnceLock::<ShimHandle>::new());
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let (reported, seen) = (Arc::clone(&shim), Arc::clone(&outcomes));
    let reaper = OnReport::start(builder, move |_, name, _| {
        if name == ReaperCounter::Reaped.name() {
            let outcome = reported.get().and_then(|shim| shim.try_wait().unwrap());
            seen.lock().unwrap().push(outcome);
        }
    });
    let mut child = exits_on_eof(0).spawn().unwrap();
    let stdin = child.stdin.take();
    let handle = shim.get_or_init(|| reaper.register_child(child).unwrap());
    drop(stdin);
    handle.await.unwrap();
    assert_eq!(*outcomes.lock().unwrap(), [None]);
}

async fn metrics_may_call_the_reaper(builder: ReaperBuilder) {
    thread_local!(static REPORTS_OWN_CALL: Cell<bool> = const { Cell::new(false) });
    let reaped = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reaped);
    let builder = builder
        .owner_grace(Duration::ZERO)
        .sweep_interval(Duration::from_millis(10));
    let reaper = OnReport::start(builder, move |reaper, name, _| {
        let is_first = name == ReaperCounter::Reaped.name() && counted.fetch_add(1, Relaxed) == 0;
        if REPORTS_OWN_CALL.replace(true) {
            return;
        }
        // These take the locks of the directory, of the streams and of each shim.
        for pid in reaper.registered() {
            let shim = reaper.attach(pid);
            assert!(shim.is_err() || shim.unwrap().try_wait().is_ok());
        }
        drop(reaper.exits());
        if is_first {
            drop(reaper.spawn(exits_with(0)).unwrap());
        }
        REPORTS_OWN_CALL.set(false);
    });
    let spawned = reaper.spawn(exits_with(0)).unwrap();
    let ended = exits_with(0).spawn().unwrap();
    eventually("the child exits", || is_zombie(ended.id())).await;
    let ended = reaper.register_child(ended).unwrap();
    spawned.await.unwrap();
    ended.await.unwrap();
    eventually("the shim of the metrics is reaped", || {
        reaped.load(Relaxed) == 3 && reaper.registered().is_empty()
    })
    .await;
    let mut running = KillOnDrop::default();
    let running = reaper.register(running.spawn(sleeper()).unwrap()).unwrap();
    reaper.shutdown().await;
    drop(running);
}

async fn metrics_that_panic_do_not_affect_the_reaper(builder: ReaperBuilder) {
    struct Panicking;

    struct PanicsAgain;

    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("the payload of the first panic"));
        }
    }

    impl Metrics for Panicking {
        fn increment(&self, _counter: ReaperCounter, _by: u64) {
            std::panic::resume_unwind(Box::new(PanicsAgain));
        }

        fn adjust(&self, _gauge: ReaperGauge, _by: i64) {
            std::panic::resume_unwind(Box::new("metrics"));
        }
    }

    let reaper = builder
        .metrics(Panicking)
        .sweep_interval(Duration::from_millis(10))
        .start();
    let handles: Vec<_> = (0..10)
        .map(|code| reaper.spawn(exits_with(code)).unwrap())
        .collect();
    let pids: Vec<_> = handles.iter().map(|handle| handle.id()).collect();
    for (code, handle) in (0..).zip(handles) {
        assert_eq!(handle.await.unwrap().code(), Some(code));
    }
    eventually("two sweeps complete", || {
        reaper.stats().sweeps_completed >= 2
    })
    .await;
    assert!(!pids.into_iter().any(is_waitable));
    let stats = reaper.stats();
    assert_eq!((stats.reaped_total, stats.registered), (10, 0));
    assert_eq!(stats.respawns_total, 0);
    assert!(reaper.shutdown().await.still_running.is_empty());
}

#[test]
fn every_metric_has_a_name_and_a_description_of_its_own() {
    let counters = ReaperCounter::ALL.iter();
    let counters = counters.map(|counter| (counter.name(), counter.description()));
    let gauges = ReaperGauge::ALL.iter();
    let gauges = gauges.map(|gauge| (gauge.name(), gauge.description()));
    let (names, descriptions): (BTreeSet<_>, BTreeSet<_>) = counters.chain(gauges).unzip();
    let count = ReaperCounter::ALL.len() + ReaperGauge::ALL.len();
    assert_eq!((names.len(), descriptions.len()), (count, count));
    assert!(names.iter().all(|name| name.starts_with("shim_reaper_")));
    assert!(descriptions.iter().all(|text| text.ends_with('.')));
}
