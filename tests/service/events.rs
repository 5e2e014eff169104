use futures::StreamExt;
use reqwest::Method;
use vmm_rest::Limits;
use vmm_rest::wire::{BoxChange, BoxStatus, CreateBoxRequest, StopBoxRequest};

use crate::common::DEADLINE;
use crate::fixture::Service;

#[tokio::test]
async fn every_change_is_told_in_order_with_what_the_box_was_like() {
    let service = Service::start().await;
    let client = &service.client;
    let events = client.events().await.unwrap();
    let running = service
        .started(CreateBoxRequest::of("idle").name("web"))
        .await;
    client
        .stop("web", &StopBoxRequest::default())
        .await
        .unwrap();
    client.remove("web", false).await.unwrap();
    let told = tokio::time::timeout(DEADLINE, events.take(4).collect::<Vec<_>>());
    let told: Vec<_> = told
        .await
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let changes: Vec<_> = told.iter().map(|event| event.change).collect();
    use BoxChange::{Created, Removed, Started, Stopped};
    assert_eq!(changes, [Created, Started, Stopped, Removed]);
    let statuses: Vec<_> = told.iter().map(|event| event.state.status).collect();
    use BoxStatus as Status;
    assert_eq!(
        statuses,
        [
            Status::Configured,
            Status::Running,
            Status::Stopped,
            Status::Stopped
        ]
    );
    assert_eq!(
        (&told[1].state, &told[3].state.image),
        (&running, &"idle".to_owned())
    );
    service.end().await;
}

#[tokio::test]
async fn the_stream_is_server_sent_events() {
    let service = Service::start().await;
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
    service.end().await;
}

#[tokio::test]
async fn whoever_asks_for_the_head_alone_is_no_reader() {
    let service = Service::with(Limits::default().event_readers(1)).await;
    let reader = service.client.events().await.unwrap();
    let head = service.send(Method::HEAD, "/v1/events", "").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.headers["content-type"], "text/event-stream");
    drop(reader);
    service.end().await;
}
