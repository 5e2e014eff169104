use futures::StreamExt;
use reqwest::Method;
use serde_json::json;
use vmm_rest::wire::{BoxChange, BoxStatus, CreateBoxRequest, StopBoxRequest};

use crate::common::{DEADLINE, boxes::send_go};
use crate::fixture::TestServer;

const EXITS_ON_GO: &str = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit 3";

fn script(text: &str) -> CreateBoxRequest {
    CreateBoxRequest::of("idle").cmd(["sh", "-c", text])
}

#[tokio::test]
async fn a_box_shows_its_restarts_in_responses_events_and_metrics() {
    let service = TestServer::start().await;
    let client = &service.client;
    let mut events = client.events().await.unwrap();
    let looping = script("exit 3").restart_policy("on-failure:9");
    let id = service.start_box(looping).await.box_id;
    // The seventh run follows after 3.2 s.
    let bx = service
        .wait_for(&id, |bx| {
            bx.restarts == 6 && bx.restarting && bx.pid.is_none()
        })
        .await;
    assert_eq!(
        (bx.restart_policy.as_str(), bx.status, bx.exit_code),
        ("on-failure:9", BoxStatus::Failed, Some(3))
    );
    let metrics = service.send(Method::GET, "/metrics", "").await.text;
    assert!(metrics.contains("vmm_boxes_restarted_total 5"), "{metrics}");

    client.stop(&id, &StopBoxRequest::default()).await.unwrap();
    let cancelled = tokio::time::timeout(DEADLINE, async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.change == BoxChange::Cancelled {
                return event.state;
            }
        }
    });
    let cancelled = cancelled.await.unwrap();
    assert_eq!((cancelled.box_id, cancelled.restarting), (id, false));
    service.shut_down().await;
}

#[tokio::test]
async fn the_server_removes_a_box_with_auto_remove_when_it_has_ended() {
    let service = TestServer::start().await;
    let bx = service
        .start_box(script(EXITS_ON_GO).auto_remove(true))
        .await;
    assert!(bx.auto_remove);
    send_go(&service.home, &bx.box_id);
    let poll = async {
        while service.client.exists(&bx.box_id).await.unwrap() {
            crate::common::pause().await;
        }
    };
    tokio::time::timeout(DEADLINE, poll).await.unwrap();
    service.shut_down().await;
}

#[tokio::test]
async fn requests_with_an_unusable_restart_policy_are_rejected() {
    let service = TestServer::start().await;
    for (body, message) in [
        (
            json!({"image": "idle", "restart_policy": "sometimes"}),
            "unless-stopped",
        ),
        (
            json!({"image": "idle", "restart_policy": "always", "auto_remove": true}),
            "removed automatically",
        ),
    ] {
        let reply = service
            .send(Method::POST, "/v1/boxes", &body.to_string())
            .await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_argument")
        );
        assert!(reply.message().contains(message), "{reply:?}");
    }
    service.shut_down().await;
}
