use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// How many observations took how long, as a histogram of Prometheus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DurationHistogram {
    /// The number of observations in each bucket: `counts[i]` took at most
    /// [`UPPER_BOUNDS`](Self::UPPER_BOUNDS)`[i]`, and longer than the bound before. The last bucket
    /// has those that took longer than all bounds.
    pub counts: [u64; Self::UPPER_BOUNDS.len() + 1],
    /// The sum of all observations.
    pub sum: Duration,
}

impl DurationHistogram {
    /// The upper bounds of the buckets, inclusive.
    pub const UPPER_BOUNDS: [Duration; 12] = [
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(25),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(250),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_millis(2500),
        Duration::from_secs(5),
        Duration::from_secs(10),
        Duration::from_secs(30),
    ];

    /// Returns the number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// The counters behind a [`DurationHistogram`].
#[derive(Debug, Default)]
pub(super) struct AtomicHistogram {
    counts: [AtomicU64; DurationHistogram::UPPER_BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl AtomicHistogram {
    pub(super) fn observe(&self, duration: Duration) {
        let bucket = DurationHistogram::UPPER_BOUNDS.partition_point(|bound| *bound < duration);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> DurationHistogram {
        DurationHistogram {
            counts: self
                .counts
                .each_ref()
                .map(|count| count.load(Ordering::Relaxed)),
            sum: Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_counts_in_the_first_bucket_that_has_room_for_it() {
        let histogram = AtomicHistogram::default();
        for micros in [0, 5_000, 5_001, 30_000_000, 30_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let found = histogram.snapshot();
        assert_eq!(found.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(found.count(), 5);
        assert_eq!(found.sum, Duration::from_micros(60_010_002));
    }
}
