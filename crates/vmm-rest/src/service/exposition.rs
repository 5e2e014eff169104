//! The runtime's numbers as OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use vmm_runtime::{BoxInfo, RuntimeMetrics};

use super::procfs;
use crate::wire::BoxStatus;

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything at one moment.
#[derive(Debug)]
pub(crate) struct Numbers {
    runtime: RuntimeMetrics,
    by_status: BTreeMap<BoxStatus, u64>,
    accept_failures: u64,
    /// `None` where the kernel does not tell.
    zombies: Option<u64>,
}

impl Numbers {
    /// Looks into `/proc`: blocks.
    pub(crate) fn take(runtime: RuntimeMetrics, boxes: &[BoxInfo], accept_failures: u64) -> Self {
        use BoxStatus::{Configured, Failed, Running, Stopped, Stopping};
        let mut by_status: BTreeMap<BoxStatus, u64> =
            [Configured, Running, Stopping, Stopped, Failed]
                .map(|status| (status, 0))
                .into();
        for info in boxes {
            *by_status.entry(info.into()).or_default() += 1;
        }
        Self {
            runtime,
            by_status,
            accept_failures,
            zombies: zombies(),
        }
    }

    pub(crate) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("vmm");
        let boxes = Family::<Vec<(&str, &str)>, Gauge<u64, AtomicU64>>::default();
        for (status, count) in &self.by_status {
            boxes
                .get_or_create(&vec![("status", status.name())])
                .set(*count);
        }
        registry.register("boxes", "Boxes by their status", boxes);
        registry.register_collector(Box::new(self));
        let mut written = String::new();
        text::encode(&mut written, &registry)?;
        Ok(written)
    }
}

/// Children of this process that have ended and that nobody has collected.
fn zombies() -> Option<u64> {
    let children = procfs::children(std::process::id()).ok()?;
    let zombies = children
        .into_iter()
        .filter(|pid| procfs::stat(*pid).is_some_and(|stat| stat.state == 'Z'));
    u64::try_from(zombies.count()).ok()
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let runtime = &self.runtime;
        for (name, help, count) in [
            (
                "boxes_created",
                "Boxes created.",
                runtime.boxes_created_total,
            ),
            (
                "boxes_failed",
                "Times that a box could not be started, or failed while it ran.",
                runtime.boxes_failed_total,
            ),
            (
                "boxes_crashed",
                "Of these, the times that it was not the payload's code, nor what the spec asked for.",
                runtime.boxes_crashed_total,
            ),
            (
                "boxes_stopped",
                "Times that a box stopped.",
                runtime.boxes_stopped_total,
            ),
            (
                "shim_reaped",
                "Shims collected by the reaper.",
                runtime.shim_reaped,
            ),
            (
                "shim_reaper_vanished",
                "Shims whose end the reaper saw but did not collect.",
                runtime.shim_reaper_vanished,
            ),
            (
                "shim_reaper_sweeps",
                "Sweeps that the reaper completed; never stands still.",
                runtime.shim_reaper_sweeps,
            ),
            (
                "shim_reaper_respawns",
                "Times that the reaper's worker had to be replaced.",
                runtime.shim_reaper_respawns,
            ),
            (
                "rest_accept_failures",
                "Times that the server could not accept a connection.",
                self.accept_failures,
            ),
        ] {
            put(&mut encoder, name, help, None, &ConstCounter::new(count))?;
        }
        for (name, help, value) in [
            (
                "boxes_running",
                "Boxes that run now.",
                runtime.num_running_boxes,
            ),
            (
                "shim_reaper_registered",
                "Shims that the reaper watches now.",
                runtime.shim_reaper_registered,
            ),
            (
                "shim_reaper_up",
                "Whether the reaper's worker is there.",
                u64::from(runtime.shim_reaper_alive),
            ),
        ] {
            put(&mut encoder, name, help, None, &ConstGauge::new(value))?;
        }
        if let Some(at) = runtime.shim_reaper_last_sweep_at_ms {
            let seconds = ConstGauge::new(at as f64 / 1000.0);
            let (name, help) = (
                "shim_reaper_last_sweep_timestamp",
                "When the reaper's last sweep was, in seconds since 1970.",
            );
            put(&mut encoder, name, help, Some(&Unit::Seconds), &seconds)?;
        }
        if let Some(zombies) = self.zombies {
            let help = "Children of the server that have ended and are not collected.";
            let zombies = ConstGauge::new(zombies);
            put(&mut encoder, "shim_zombies", help, None, &zombies)?;
        }
        Ok(())
    }
}

fn put(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    let metric_encoder = encoder.encode_descriptor(name, help, unit, metric.metric_type())?;
    metric.encode(metric_encoder)
}
