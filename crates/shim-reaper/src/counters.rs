use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{MetricsSink, ReaperStats};

/// The numbers behind [`ReaperStats`], and the embedder's copy of three of them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    registered: AtomicU64,
    reaped: AtomicU64,
    vanished: AtomicU64,
    orphans_reaped: AtomicU64,
    sweeps: AtomicU64,
    /// 0 before the first sweep.
    last_sweep_at_ms: AtomicI64,
    respawns: AtomicU64,
    without_pidfd: AtomicU64,
    sink: MetricsSink,
}

impl Counters {
    pub(crate) fn new(sink: MetricsSink) -> Self {
        Self {
            sink,
            ..Self::default()
        }
    }

    pub(crate) fn registered(&self) {
        self.registered.fetch_add(1, Relaxed);
        self.sink.registered_now.fetch_add(1, Relaxed);
    }

    pub(crate) fn unregistered(&self) {
        self.registered.fetch_sub(1, Relaxed);
        self.sink.registered_now.fetch_sub(1, Relaxed);
    }

    pub(crate) fn reaped(&self) {
        self.reaped.fetch_add(1, Relaxed);
        self.sink.reaped_total.fetch_add(1, Relaxed);
    }

    pub(crate) fn vanished(&self) {
        self.vanished.fetch_add(1, Relaxed);
        self.sink.vanished_total.fetch_add(1, Relaxed);
    }

    pub(crate) fn orphan_reaped(&self) {
        self.orphans_reaped.fetch_add(1, Relaxed);
    }

    pub(crate) fn swept(&self) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| {
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            });
        self.last_sweep_at_ms.store(now, Relaxed);
        self.sweeps.fetch_add(1, Relaxed);
    }

    pub(crate) fn respawned(&self) {
        self.respawns.fetch_add(1, Relaxed);
    }

    pub(crate) fn lost_pidfd(&self) {
        self.without_pidfd.fetch_add(1, Relaxed);
    }

    pub(crate) fn no_longer_without_pidfd(&self) {
        self.without_pidfd.fetch_sub(1, Relaxed);
    }

    pub(crate) fn any_without_pidfd(&self) -> bool {
        self.without_pidfd.load(Relaxed) > 0
    }

    pub(crate) fn read(&self, worker_alive: bool) -> ReaperStats {
        let last_sweep = self.last_sweep_at_ms.load(Relaxed);
        ReaperStats {
            registered: self.registered.load(Relaxed),
            reaped_total: self.reaped.load(Relaxed),
            vanished_total: self.vanished.load(Relaxed),
            orphans_reaped_total: self.orphans_reaped.load(Relaxed),
            sweeps_completed: self.sweeps.load(Relaxed),
            last_sweep_at_ms: (last_sweep != 0).then_some(last_sweep),
            worker_alive,
            respawns_total: self.respawns.load(Relaxed),
            without_pidfd: self.without_pidfd.load(Relaxed),
        }
    }
}
