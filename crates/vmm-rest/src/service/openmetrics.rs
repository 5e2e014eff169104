//! The metrics of the VMM runtime as OpenMetrics text.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use vmm_runtime::{DurationHistogram, HelperCounts, RuntimeMetrics, VmmRuntime};

use crate::wire::{BoxChange, BoxStatus};

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics at one moment.
#[derive(Debug)]
pub(crate) struct MetricsSnapshot {
    runtime: RuntimeMetrics,
    by_status: [(&'static str, u64); 7],
    helpers: HelperCounts,
    accept_failures: u64,
}

impl MetricsSnapshot {
    /// Takes a snapshot.
    pub(crate) async fn take(runtime: &VmmRuntime, accept_failures: u64) -> Self {
        let boxes = runtime.count_boxes().await;
        Self {
            runtime: runtime.metrics().await,
            by_status: [
                (BoxStatus::Configured.name(), boxes.configured),
                (BoxChange::Starting.name(), boxes.starting),
                (BoxStatus::Running.name(), boxes.running),
                (BoxStatus::Stopping.name(), boxes.stopping),
                (BoxStatus::Paused.name(), boxes.paused),
                (BoxStatus::Stopped.name(), boxes.stopped),
                (BoxStatus::Failed.name(), boxes.failed),
            ],
            helpers: boxes.helpers,
            accept_failures,
        }
    }

    /// Encodes the snapshot as OpenMetrics text.
    pub(crate) fn encode_text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("vmm");
        let boxes = Family::<Vec<(&str, &str)>, Gauge<u64, AtomicU64>>::default();
        for (status, count) in &self.by_status {
            boxes.get_or_create(&vec![("status", *status)]).set(*count);
        }
        registry.register("boxes", "Boxes by their status", boxes);
        let helpers = Family::<Vec<(&str, &str)>, Gauge<u64, AtomicU64>>::default();
        for (state, count) in [
            (BoxStatus::Running.name(), self.helpers.running),
            (BoxStatus::Stopping.name(), self.helpers.stopping),
            (BoxStatus::Paused.name(), self.helpers.paused),
        ] {
            helpers.get_or_create(&vec![("state", state)]).set(count);
        }
        let help = "Helper processes by the status of their boxes";
        registry.register("helper_processes", help, helpers);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for MetricsSnapshot {
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
                "Failed starts and failed runs of boxes.",
                runtime.boxes_failed_total,
            ),
            (
                "boxes_crashed",
                "Failures caused neither by the payload's exit code nor by an invalid spec.",
                runtime.boxes_crashed_total,
            ),
            (
                "boxes_stopped",
                "Times that a box stopped.",
                runtime.boxes_stopped_total,
            ),
            (
                "boxes_restarted",
                "Restarts by the policies of boxes.",
                runtime.boxes_restarted_total,
            ),
            (
                "shim_reaped",
                "Shims reaped by the reaper.",
                runtime.shim_reaped,
            ),
            (
                "shim_reaper_vanished",
                "Shims whose exit the reaper observed but that it did not reap.",
                runtime.shim_reaper_vanished,
            ),
            (
                "shim_reaper_owner_reaped",
                "Shims that the reaper left to their owner.",
                runtime.shim_reaper_owner_reaped,
            ),
            (
                "shim_reaper_observed",
                "Shims of an earlier server, which are not children of this one.",
                runtime.shim_reaper_observed,
            ),
            (
                "shim_reaper_foreign_waits",
                "Shims that other code in the server reaped.",
                runtime.shim_reaper_foreign_waits,
            ),
            (
                "shim_reaper_unknown",
                "Shims that were not found, or are not children of the server.",
                runtime.shim_reaper_unknown,
            ),
            (
                "shim_reaper_sweeps",
                "Sweeps completed by the reaper; rises as long as it works.",
                runtime.shim_reaper_sweeps,
            ),
            (
                "shim_reaper_respawns",
                "Times that the worker of the reaper was replaced.",
                runtime.shim_reaper_respawns,
            ),
            (
                "warm_shim_failures",
                "Shims that were to take a box and had ended, or hung.",
                runtime.warm_shim_failures_total,
            ),
            (
                "helper_process_failures",
                "Runs that failed because a helper process of the payload ended.",
                runtime.helper_failures_total,
            ),
            (
                "executions_started",
                "Commands started in boxes beside their payloads.",
                runtime.executions.started,
            ),
            (
                "execution_start_failures",
                "Commands that could not be started in boxes.",
                runtime.executions.start_failures,
            ),
            (
                "rest_accept_failures",
                "Times that the server could not accept a connection.",
                self.accept_failures,
            ),
        ] {
            write_metric(&mut encoder, name, help, None, &ConstCounter::new(count))?;
        }
        for (name, help, value) in [
            (
                "boxes_running",
                "Boxes that are running now.",
                runtime.num_running_boxes,
            ),
            (
                "executions_running",
                "Commands that are running in boxes now.",
                runtime.executions.running,
            ),
            (
                "shim_reaper_registered",
                "Shims that the reaper watches now.",
                runtime.shim_reaper_registered,
            ),
            (
                "shim_zombies",
                "Shims that have exited and are not reaped.",
                runtime.shim_zombies,
            ),
            (
                "warm_shims",
                "Shims that wait for a box.",
                runtime.warm_shims,
            ),
            (
                "shim_reaper_up",
                "Whether the worker of the reaper is alive.",
                u64::from(runtime.shim_reaper_alive),
            ),
        ] {
            write_metric(&mut encoder, name, help, None, &ConstGauge::new(value))?;
        }
        let executions = &runtime.executions;
        encode_counters(
            encoder.encode_descriptor(
                "executions_ended",
                "Commands in boxes that have ended, by how; lost if the box ended first.",
                None,
                MetricType::Counter,
            )?,
            "outcome",
            &[
                ("succeeded", executions.succeeded),
                ("failed", executions.failed),
                ("signaled", executions.signaled),
                ("out_of_memory", executions.out_of_memory),
                ("lost", executions.lost),
            ],
        )?;
        encode_counters(
            encoder.encode_descriptor(
                "execution_stream_bytes",
                "Bytes that the server has moved for commands in boxes.",
                None,
                MetricType::Counter,
            )?,
            "stream",
            &[
                ("stdin", executions.stdin_bytes),
                ("stdout", executions.stdout_bytes),
                ("stderr", executions.stderr_bytes),
            ],
        )?;
        let starts = encoder.encode_descriptor(
            "box_start_duration_seconds",
            "Time from the start of a shim until its payload was ready.",
            None,
            MetricType::Histogram,
        )?;
        encode_histogram(starts, &runtime.box_starts)?;
        let mut boots = encoder.encode_descriptor(
            "guest_boot_duration_seconds",
            "The phases of that time for guests with an agent: VMM, kernel, agent.",
            None,
            MetricType::Histogram,
        )?;
        for (phase, durations) in [
            ("vmm", &runtime.guest_boots.vmm),
            ("kernel", &runtime.guest_boots.kernel),
            ("agent", &runtime.guest_boots.agent),
        ] {
            encode_histogram(boots.encode_family(&[("phase", phase)])?, durations)?;
        }
        if let Some(at) = runtime.shim_reaper_last_sweep_at_ms {
            let seconds = ConstGauge::new(at as f64 / 1000.0);
            let (name, help) = (
                "shim_reaper_last_sweep_timestamp",
                "Time of the reaper's last sweep, in seconds since 1970.",
            );
            write_metric(&mut encoder, name, help, Some(&Unit::Seconds), &seconds)?;
        }
        Ok(())
    }
}

fn write_metric(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    let metric_encoder = encoder.encode_descriptor(name, help, unit, metric.metric_type())?;
    metric.encode(metric_encoder)
}

fn encode_counters(
    mut encoder: MetricEncoder<'_>,
    label: &str,
    counters: &[(&str, u64)],
) -> fmt::Result {
    for (value, count) in counters {
        let labels = [(label, *value)];
        let metric_encoder = encoder.encode_family(&labels)?;
        ConstCounter::new(*count).encode(metric_encoder)?;
    }
    Ok(())
}

fn encode_histogram(mut encoder: MetricEncoder<'_>, histogram: &DurationHistogram) -> fmt::Result {
    let bounds = DurationHistogram::UPPER_BOUNDS.map(|bound| bound.as_secs_f64());
    let bounds = bounds.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(histogram.counts).collect();
    let (sum, count) = (histogram.sum.as_secs_f64(), histogram.count());
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}
