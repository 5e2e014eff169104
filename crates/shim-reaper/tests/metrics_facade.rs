//! The recorder of the crate `metrics` gets all that the reaper counts, with its name and description.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use common::recorder::sums_of;
use common::{KillOnDrop, exits_with, sleeper};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use shim_reaper::{Metrics, MetricsFacade, ReaperCounter, ReaperGauge, ShimReaper};

#[derive(Default)]
struct InMemory {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    /// The bits of floating-point numbers.
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    descriptions: Mutex<BTreeMap<String, String>>,
}

impl InMemory {
    fn describe(&self, name: &KeyName, description: &SharedString) {
        let mut descriptions = self.descriptions.lock().unwrap();
        descriptions.insert(name.as_str().to_owned(), description.to_string());
    }

    fn register(to: &Mutex<BTreeMap<String, Arc<AtomicU64>>>, key: &Key) -> Arc<AtomicU64> {
        let mut registered = to.lock().unwrap();
        Arc::clone(registered.entry(key.name().to_owned()).or_default())
    }

    fn values(&self) -> BTreeMap<String, i64> {
        let counters = self.counters.lock().unwrap();
        let gauges = self.gauges.lock().unwrap();
        let counters = counters
            .iter()
            .map(|(name, value)| (name, i64::try_from(value.load(Relaxed)).unwrap()));
        let gauges = gauges
            .iter()
            .map(|(name, bits)| (name, f64::from_bits(bits.load(Relaxed)) as i64));
        let values = counters.chain(gauges);
        values.map(|(name, value)| (name.clone(), value)).collect()
    }
}

impl Recorder for InMemory {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&name, &description);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&name, &description);
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Self::register(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Self::register(&self.gauges, key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test]
async fn the_recorder_gets_every_event() {
    let recorder = InMemory::default();
    let facade = metrics::with_local_recorder(&recorder, MetricsFacade::new);
    let reaper = ShimReaper::builder().metrics(facade).start();
    reaper.spawn(exits_with(0)).unwrap().await.unwrap();
    // No process has this pid.
    let unknown = reaper.register(i32::MAX as u32).unwrap();
    unknown.await.unwrap();
    let mut running = KillOnDrop::default();
    for _ in 0..2 {
        drop(reaper.attach(running.spawn(sleeper()).unwrap()).unwrap());
    }
    // On this thread, no task of the reaper runs in between.
    let mut values = recorder.values();
    values.retain(|_, value| *value != 0);
    let expected = sums_of(&reaper.stats());
    let expected: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(values, expected);
    assert_eq!(values["shim_reaper_registered"], 2);
}

#[test]
fn every_metric_is_described_and_starts_at_zero() {
    let recorder = InMemory::default();
    metrics::with_local_recorder(&recorder, MetricsFacade::new);
    let counters = ReaperCounter::ALL.iter();
    let counters = counters.map(|counter| (counter.name(), counter.description()));
    let gauges = ReaperGauge::ALL.iter();
    let gauges = gauges.map(|gauge| (gauge.name(), gauge.description()));
    let all = counters.chain(gauges);
    let described: BTreeMap<_, _> = all
        .map(|(name, description)| (name.to_owned(), description.to_owned()))
        .collect();
    assert_eq!(*recorder.descriptions.lock().unwrap(), described);
    let values = recorder.values();
    assert!(values.keys().eq(described.keys()));
    assert!(values.values().all(|value| *value == 0));
}

#[test]
fn each_metric_goes_to_its_own_name() {
    let recorder = InMemory::default();
    let facade = metrics::with_local_recorder(&recorder, MetricsFacade::new);
    for (by, counter) in (1..).zip(ReaperCounter::ALL) {
        facade.increment(*counter, by);
        assert_eq!(recorder.values()[counter.name()], by as i64);
    }
    for (by, gauge) in (1..).zip(ReaperGauge::ALL) {
        facade.adjust(*gauge, -by);
        assert_eq!(recorder.values()[gauge.name()], -by);
    }
}
