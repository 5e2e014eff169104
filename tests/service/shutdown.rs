use std::time::{Duration, Instant};

use futures::StreamExt;
use vmm_rest::wire::{BoxStatus, CreateBoxRequest, StopBoxRequest};
use vmm_rest::{ClientError, Limits};

use crate::common::{DEADLINE, boxes, eventually};
use crate::fixture::{Service, deaf, heard};

/// Waits for the payload's sign.
async fn sign(service: &Service, id: &str, name: &str) {
    let file = boxes::dir_of(&service.home, id).join(name);
    eventually(name, || file.exists()).await;
}

#[tokio::test]
async fn a_request_that_is_under_way_is_finished_and_no_other_is_begun() {
    let mut service = Service::start().await;
    let running = service.started(deaf()).await;
    sign(&service, &running.box_id, "up").await;
    let client = service.client.clone();
    let id = running.box_id.clone();
    let stopping = tokio::spawn(async move {
        let patience = StopBoxRequest::default().timeout_seconds(1.0);
        client.stop(&id, &patience).await
    });
    sign(&service, &running.box_id, "asked").await;
    service.end_server().await;
    let stopped = stopping.await.unwrap().unwrap();
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(9))
    );
    let late = service.client.me().await.unwrap_err();
    assert!(matches!(late, ClientError::Unreachable { .. }), "{late:?}");
    service.end().await;
}

#[tokio::test]
async fn connections_that_ask_for_nothing_do_not_delay_the_end() {
    let mut service = Service::start().await;
    let mut idle = service.saying("").await;
    service.client.me().await.unwrap();
    let begun = Instant::now();
    service.end_server().await;
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "it waited for them"
    );
    assert_eq!(heard(&mut idle).await, "");
    service.end().await;
}

#[tokio::test]
async fn readers_of_events_see_the_end() {
    let mut service = Service::start().await;
    let mut events = service.client.events().await.unwrap();
    service
        .client
        .create(&CreateBoxRequest::of("idle"))
        .await
        .unwrap();
    service.end_server().await;
    assert!(events.next().await.unwrap().is_ok());
    assert!(events.next().await.is_none());
    service.end().await;
}

#[tokio::test]
async fn what_is_not_finished_in_time_is_given_up() {
    let mut service =
        Service::with(Limits::default().drain_timeout(Duration::from_millis(50))).await;
    let running = service.started(deaf()).await;
    sign(&service, &running.box_id, "up").await;
    let client = service.client.clone();
    let id = running.box_id.clone();
    let stopping = tokio::spawn(async move { client.stop(&id, &StopBoxRequest::default()).await });
    sign(&service, &running.box_id, "asked").await;
    service.end_server().await;
    let given_up = tokio::time::timeout(DEADLINE, stopping)
        .await
        .unwrap()
        .unwrap();
    assert!(
        matches!(given_up, Err(ClientError::Lost { .. })),
        "{given_up:?}"
    );
    service.runtime.remove(&running.box_id, true).await.unwrap();
    service.end().await;
}

#[tokio::test]
async fn a_reader_of_events_that_reads_none_does_not_delay_the_end() {
    let mut service = Service::start().await;
    let stalled = service
        .saying("GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    // It has been let in when it is sent the head.
    stalled.readable().await.unwrap();
    // More than any socket holds.
    for _ in 0..1000 {
        service
            .client
            .create(&CreateBoxRequest::of("idle"))
            .await
            .unwrap();
    }
    let begun = Instant::now();
    service.end_server().await;
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "it waited for the reader"
    );
    service.end().await;
}
