use reqwest::Method;
use vmm_rest::wire::{BoxMetricsResponse, CreateBoxRequest};

use crate::common::{DEADLINE, pause};
use crate::fixture::Service;

#[tokio::test]
async fn what_the_runtime_has_done_is_counted() {
    let service = Service::start().await;
    let running = service.started(CreateBoxRequest::of("idle")).await;
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
    service.client.remove(&running.box_id, true).await.unwrap();
    let metrics = service.client.metrics().await.unwrap();
    assert_eq!(
        (metrics.shim_reaper_registered, metrics.shim_reaped),
        (0, 1)
    );
    assert_eq!(
        (metrics.boxes_stopped_total, metrics.num_running_boxes),
        (1, 0)
    );
    service.end().await;
}

#[tokio::test]
async fn the_exposition_has_the_same_numbers_as_open_metrics() {
    let service = Service::start().await;
    let running = service.started(CreateBoxRequest::of("idle")).await;
    let reply = service.send(Method::GET, "/metrics", "").await;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(reply.headers["content-type"], kind);
    for line in [
        "# TYPE vmm_boxes gauge",
        "vmm_boxes{status=\"running\"} 1",
        "vmm_boxes{status=\"failed\"} 0",
        "# TYPE vmm_boxes_created counter",
        "vmm_boxes_created_total 1",
        "vmm_boxes_crashed_total 0",
        "vmm_boxes_running 1",
        "vmm_shim_reaped_total 0",
        "vmm_shim_reaper_registered 1",
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
    assert_eq!(families.families.len(), 15);
    service.client.remove(&running.box_id, true).await.unwrap();
    service.end().await;
}

#[tokio::test]
async fn a_box_that_works_uses_memory_and_time_and_one_that_does_not_run_nothing() {
    let service = Service::start().await;
    let busy = CreateBoxRequest::of("idle").cmd(["sh", "-c", "while :; do :; done"]);
    let running = service.started(busy).await;
    let id = &running.box_id;
    let used = async {
        loop {
            let usage = service.client.box_metrics(id).await.unwrap();
            if usage.cpu_percent.unwrap() > 0.0 && usage.memory_bytes.unwrap() > 100_000 {
                break;
            }
            pause().await;
        }
    };
    let used = tokio::time::timeout(DEADLINE, used).await;
    used.expect("it uses nothing");
    service.client.stop(id, &Default::default()).await.unwrap();
    let usage = service.client.box_metrics(id).await.unwrap();
    assert_eq!(usage, BoxMetricsResponse::default());
    service.end().await;
}
