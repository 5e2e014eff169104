use futures::StreamExt;
use reqwest::Method;
use vmm_rest::Limits;
use vmm_rest::wire::{BoxChange, BoxStatus, CreateBoxRequest, StopBoxRequest};

use crate::common::DEADLINE;
use crate::fixture::TestServer;

#[tokio::test]
async fn events_report_every_change_in_order_with_the_state_of_the_box() {
    let service = TestServer::start().await;
    let client = &service.client;
    let events = client.events().await.unwrap();
    let bx = service
        .start_box(CreateBoxRequest::of("idle").name("web"))
        .await;
    client
        .stop("web", &StopBoxRequest::default())
        .await
        .unwrap();
    client.remove("web", false).await.unwrap();
    let events = tokio::time::timeout(DEADLINE, events.take(5).collect::<Vec<_>>());
    let events: Vec<_> = events
        .await
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let changes: Vec<_> = events.iter().map(|event| event.change).collect();
    use BoxChange::{Created, Removed, Started, Starting, Stopped};
    assert_eq!(changes, [Created, Starting, Started, Stopped, Removed]);
    let statuses: Vec<_> = events.iter().map(|event| event.state.status).collect();
    use BoxStatus as Status;
    assert_eq!(
        statuses,
        [
            Status::Configured,
            // The public API has no status for a start in progress.
            Status::Configured,
            Status::Running,
            Status::Stopped,
            Status::Stopped
        ]
    );
    assert_eq!(
        (&events[2].state, &events[4].state.image),
        (&bx, &"idle".to_owned())
    );
    let starting: Vec<_> = events.iter().map(|event| event.state.starting).collect();
    assert_eq!(starting, [false, true, false, false, false]);
    assert_eq!(events[1].state.pid, bx.pid);
    service.shut_down().await;
}

#[tokio::test]
async fn the_stream_is_server_sent_events() {
    let service = TestServer::start().await;
    let url = "http://localhost/v1/events";
    let mut response = service.http.request(Method::GET, url).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    service
        .client
        .create(&CreateBoxRequest::of("idle").name("web"))
        .await
        .unwrap();
    let mut text = String::new();
    while !text.contains("\n\n") {
        let piece = tokio::time::timeout(DEADLINE, response.chunk())
            .await
            .unwrap();
        text += std::str::from_utf8(&piece.unwrap().unwrap()).unwrap();
    }
    assert!(
        text.starts_with("event: created\ndata: {\"change\":\"created\","),
        "{text}"
    );
    drop(response);
    service.shut_down().await;
}

#[tokio::test]
async fn a_head_request_is_not_an_event_reader() {
    let service = TestServer::with_limits(Limits::default().streams(1)).await;
    let reader = service.client.events().await.unwrap();
    let head = service.send(Method::HEAD, "/v1/events", "").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.headers["content-type"], "text/event-stream");
    drop(reader);
    service.shut_down().await;
}
