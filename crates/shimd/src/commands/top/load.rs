use std::collections::HashMap;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::Instant;
use vmm_rest::Client;
use vmm_rest::wire::BoxMetricsResponse;

/// What a box uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Load {
    /// 100 for one processor that is always busy; `None` until it was measured twice.
    pub(super) cpu_percent: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
}

/// Measures boxes, and compares each with its previous measurement.
#[derive(Debug, Default)]
pub(super) struct LoadMeter {
    boxes: HashMap<String, Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    cpu_time_ms: Option<u64>,
    load: Load,
}

/// The kernel counts CPU time in ticks of 10 ms, so shorter times are not comparable.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// How many boxes are measured at a time.
const CONCURRENT_REQUESTS: usize = 8;

impl LoadMeter {
    /// Measures the boxes, and forgets all others. A box that cannot be measured has no load.
    pub(super) async fn measure(
        &mut self,
        client: &Client,
        boxes: &[String],
    ) -> HashMap<String, Load> {
        let request = |id: String| async move {
            let metrics = client.box_metrics(&id).await.ok()?;
            Some((id, metrics))
        };
        let measured: Vec<_> = stream::iter(boxes.to_vec())
            .map(request)
            .buffer_unordered(CONCURRENT_REQUESTS)
            .filter_map(async |measured| measured)
            .collect()
            .await;
        let now = Instant::now();
        let previous = std::mem::take(&mut self.boxes);
        for (id, metrics) in measured {
            let sample = Sample::new(previous.get(&id), &metrics, now);
            self.boxes.insert(id, sample);
        }
        let loads = self.boxes.iter();
        loads
            .map(|(id, sample)| (id.clone(), sample.load))
            .collect()
    }
}

impl Sample {
    fn new(previous: Option<&Self>, metrics: &BoxMetricsResponse, now: Instant) -> Self {
        let mut sample = Self {
            at: now,
            cpu_time_ms: metrics.cpu_time_ms,
            load: Load {
                cpu_percent: None,
                memory_bytes: metrics.memory_bytes,
            },
        };
        let Some(previous) = previous else {
            return sample;
        };
        let elapsed = now.duration_since(previous.at);
        if elapsed < MIN_INTERVAL {
            sample.load.cpu_percent = previous.load.cpu_percent;
            (sample.at, sample.cpu_time_ms) = (previous.at, previous.cpu_time_ms);
        } else if let (Some(before), Some(after)) = (previous.cpu_time_ms, metrics.cpu_time_ms) {
            // Falls when the box was started again.
            let used = after.saturating_sub(before) as f64 / 1000.0;
            sample.load.cpu_percent = Some(100.0 * used / elapsed.as_secs_f64());
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(cpu_time_ms: u64) -> BoxMetricsResponse {
        let mut metrics = BoxMetricsResponse::default();
        metrics.cpu_time_ms = Some(cpu_time_ms);
        metrics
    }

    #[test]
    fn the_cpu_load_is_that_since_the_previous_measurement() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs_f64(seconds);
        let first = Sample::new(None, &metrics(9000), start);
        assert_eq!(first.load.cpu_percent, None);
        let second = Sample::new(Some(&first), &metrics(10_500), after(1.0));
        assert_eq!(second.load.cpu_percent, Some(150.0));
        let too_early = Sample::new(Some(&second), &metrics(10_500), after(1.1));
        assert_eq!(too_early.load.cpu_percent, Some(150.0));
        let third = Sample::new(Some(&too_early), &metrics(10_500), after(2.0));
        assert_eq!(third.load.cpu_percent, Some(0.0));
        let restarted = Sample::new(Some(&third), &metrics(10), after(3.0));
        assert_eq!(restarted.load.cpu_percent, Some(0.0));
    }
}
