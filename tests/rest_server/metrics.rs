use futures::StreamExt;
use reqwest::Method;
use vmm_rest::wire::{BoxMetricsResponse, CreateBoxRequest, ExecRequest};

use crate::common::own_process::{block_on, in_own_process};
use crate::common::work::reads;
use crate::common::{DEADLINE, pause};
use crate::fixture::TestServer;

#[tokio::test]
async fn metrics_count_the_operations_of_the_runtime() {
    let service = TestServer::start().await;
    let bx = service.start_box(CreateBoxRequest::of("idle")).await;
    service
        .client
        .create(&CreateBoxRequest::of("idle"))
        .await
        .unwrap();
    let metrics = service.client.metrics().await.unwrap();
    assert_eq!(
        (metrics.boxes_created_total, metrics.num_running_boxes),
        (2, 1)
    );
    assert_eq!(
        (metrics.shim_reaper_registered, metrics.shim_reaped),
        (1, 0)
    );
    assert_eq!(metrics.shim_reaper_alive, Some(true));
    service.client.remove(&bx.box_id, true).await.unwrap();
    let metrics = service.client.metrics().await.unwrap();
    assert_eq!(
        (metrics.shim_reaper_registered, metrics.shim_reaped),
        (0, 1)
    );
    assert_eq!(
        (metrics.boxes_stopped_total, metrics.num_running_boxes),
        (1, 0)
    );
    service.shut_down().await;
}

#[tokio::test]
async fn the_openmetrics_exposition_has_the_same_numbers() {
    let service = TestServer::start().await;
    let bx = service.start_box(CreateBoxRequest::of("idle")).await;
    let exec = async |script| {
        let request = ExecRequest::new("sh", ["-c", script]);
        service.client.exec(&bx.box_id, &request).await.unwrap()
    };
    let ended = exec("echo hello; exit 3").await.execution_id;
    let attached = service.client.attach(&bx.box_id, &ended).await;
    attached.unwrap().1.count().await;
    exec("sleep 1000").await;
    let missing = ExecRequest::new("/nonexistent", [""; 0]);
    service.client.exec(&bx.box_id, &missing).await.unwrap_err();
    let counted = async || {
        let metrics = service.client.box_metrics(&bx.box_id).await.unwrap();
        let failed = metrics.exec_errors_total;
        let commands = (metrics.commands_executed_total, failed);
        (
            commands,
            metrics.bytes_sent_total,
            metrics.bytes_received_total,
        )
    };
    assert_eq!(counted().await, ((2, 1), 0, 6));
    let scrape = async {
        loop {
            let reply = service.send(Method::GET, "/metrics", "").await;
            // The server counts the end of a command a moment after its client gets it.
            if reply.text.contains("vmm_executions_running 1\n") {
                return reply;
            }
            pause().await;
        }
    };
    let reply = tokio::time::timeout(DEADLINE, scrape).await.unwrap();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(reply.headers["content-type"], kind);
    for line in [
        "# TYPE vmm_boxes gauge",
        "vmm_boxes{status=\"running\"} 1",
        "vmm_boxes{status=\"failed\"} 0",
        "# TYPE vmm_boxes_created counter",
        "vmm_boxes_created_total 1",
        "vmm_boxes_crashed_total 0",
        "vmm_boxes_restarted_total 0",
        "vmm_boxes_running 1",
        "vmm_executions_started_total 2",
        "vmm_execution_start_failures_total 1",
        "vmm_executions_running 1",
        "vmm_executions_ended_total{outcome=\"failed\"} 1",
        "vmm_execution_stream_bytes_total{stream=\"stdout\"} 6",
        "vmm_box_start_duration_seconds_bucket{le=\"+Inf\"} 1",
        "vmm_box_start_duration_seconds_count 1",
        "vmm_guest_boot_duration_seconds_count{phase=\"kernel\"} 0",
        "vmm_helper_processes{state=\"running\"} 0",
        "vmm_helper_processes{state=\"paused\"} 0",
        "vmm_helper_process_failures_total 0",
        "vmm_warm_shim_failures_total 0",
        "vmm_shim_reaped_total 0",
        "vmm_shim_reaper_registered 1",
        "vmm_shim_reaper_foreign_waits_total 0",
        "vmm_shim_reaper_up 1",
        "vmm_shim_reaper_respawns_total 0",
        "vmm_rest_accept_failures_total 0",
    ] {
        assert!(
            reply.text.lines().any(|found| found == line),
            "{line}:\n{}",
            reply.text
        );
    }
    for name in [
        "vmm_shim_reaper_sweeps_total",
        "vmm_shim_reaper_last_sweep_timestamp_seconds",
        "vmm_shim_zombies",
        "vmm_warm_shims",
    ] {
        let value = reply
            .text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {name}:\n{}", reply.text));
        assert!(value.parse::<f64>().unwrap() >= 0.0);
    }
    let parsed = openmetrics_parser::openmetrics::parse_openmetrics(&reply.text);
    let families = parsed.unwrap_or_else(|error| panic!("{error}:\n{}", reply.text));
    assert_eq!(families.families.len(), 31);
    service.client.remove(&bx.box_id, true).await.unwrap();
    service.shut_down().await;
}

#[test]
fn a_scrape_reads_no_file_per_box() {
    in_own_process("metrics::a_scrape_reads_no_file_per_box", || {
        block_on(async {
            const SCRAPES: u64 = 50;
            let service = TestServer::start().await;
            let mut made = Vec::new();
            for more in [1, 5] {
                for _ in 0..more {
                    service.start_box(CreateBoxRequest::of("idle")).await;
                }
                let before = reads();
                for _ in 0..SCRAPES {
                    service.send(Method::GET, "/metrics", "").await;
                }
                made.push(reads() - before);
            }
            // Reading the state of five more boxes would add ten per scrape.
            assert!(made[1] < made[0] + 3 * SCRAPES, "{made:?} reads");
            service.shut_down().await;
        });
    });
}

#[tokio::test]
async fn box_metrics_show_cpu_and_memory_only_while_the_box_runs() {
    let service = TestServer::start().await;
    let busy = CreateBoxRequest::of("idle").cmd(["sh", "-c", "while :; do :; done"]);
    let bx = service.start_box(busy).await;
    let id = &bx.box_id;
    let poll = async {
        loop {
            let usage = service.client.box_metrics(id).await.unwrap();
            if usage.cpu_percent.unwrap() > 0.0 && usage.memory_bytes.unwrap() > 100_000 {
                break;
            }
            pause().await;
        }
    };
    let result = tokio::time::timeout(DEADLINE, poll).await;
    result.expect("the box uses no CPU time or memory");
    service.client.stop(id, &Default::default()).await.unwrap();
    let usage = service.client.box_metrics(id).await.unwrap();
    assert_eq!(usage, BoxMetricsResponse::default());
    service.shut_down().await;
}
