use std::time::Duration;

use reqwest::Method;
use vmm_rest::wire::CreateBoxRequest;

use crate::common::DEADLINE;
use crate::common::boxes::send_go;
use crate::fixture::TestServer;

const PRINTS_TWICE: &str = "printf 'a\\nb\\nc\\n'; until rm $VMM_BOX_DIR/go; do sleep 0.01; done \
                            2>/dev/null; echo d";

/// Starts a box that prints three lines, and waits for them. It prints one more after
/// [`send_go`], and ends.
async fn start_printing(service: &TestServer) -> String {
    let request = CreateBoxRequest::of("idle").cmd(["sh", "-c", PRINTS_TWICE]);
    let id = service.start_box(request).await.box_id;
    let printed = async {
        while logs(service, &id, "").await != "a\nb\nc\n" {
            crate::common::pause().await;
        }
    };
    tokio::time::timeout(DEADLINE, printed).await.unwrap();
    id
}

async fn logs(service: &TestServer, id: &str, query: &str) -> String {
    let target = format!("/v1/boxes/{id}/logs{query}");
    let reply = service.send(Method::GET, &target, "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.headers["content-type"], "application/octet-stream");
    reply.text
}

#[tokio::test]
async fn logs_have_the_output_its_last_lines_and_new_output_until_the_end() {
    let service = TestServer::start().await;
    let id = start_printing(&service).await;
    assert_eq!(logs(&service, &id, "?tail=2").await, "b\nc\n");
    assert_eq!(logs(&service, &id, "?tail=0").await, "");
    let followed = logs(&service, &id, "?follow=true&tail=1");
    let follow = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        send_go(&service.home, &id);
    };
    let (followed, ()) = tokio::join!(followed, follow);
    assert_eq!(followed, "c\nd\n");
    // A box that has ended is not followed.
    assert_eq!(logs(&service, &id, "?follow=true").await, "a\nb\nc\nd\n");
    service.shut_down().await;
}

#[tokio::test]
async fn requests_for_logs_with_an_unknown_box_or_a_malformed_query_are_rejected() {
    let service = TestServer::start().await;
    let bx = service.client.create(&CreateBoxRequest::of("idle")).await;
    let id = bx.unwrap().box_id;
    assert_eq!(logs(&service, &id, "").await, "");
    for (target, status) in [
        ("/v1/boxes/missing/logs".to_owned(), 404),
        (format!("/v1/boxes/{id}/logs?tail=many"), 400),
        (format!("/v1/boxes/{id}/logs?tail=-1"), 400),
        (format!("/v1/boxes/{id}/logs?follow=1x"), 400),
    ] {
        let reply = service.send(Method::GET, &target, "").await;
        assert_eq!(reply.status, status, "{target}");
    }
    service.shut_down().await;
}
