use reqwest::Method;
use vmm_rest::wire::{BoxStatus, CreateBoxRequest, ListBoxesQuery, StopBoxRequest};

use crate::fixture::TestServer;

#[tokio::test]
async fn pages_list_every_box_once_although_boxes_are_removed() {
    let service = TestServer::start().await;
    let client = &service.client;
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(
            client
                .create(&CreateBoxRequest::of("idle"))
                .await
                .unwrap()
                .box_id,
        );
    }
    let mut seen = Vec::new();
    let mut query = ListBoxesQuery::default().page_size(3);
    loop {
        let page = client.boxes(&query).await.unwrap();
        assert!(page.boxes.len() <= 3);
        seen.extend(page.boxes.into_iter().map(|listed| listed.box_id));
        let Some(token) = page.next_page_token else {
            break;
        };
        // The page token names this box.
        client.remove(seen.last().unwrap(), false).await.unwrap();
        query = query.page_token(token);
    }
    assert_eq!(seen, ids);
    service.shut_down().await;
}

#[tokio::test]
async fn an_exactly_full_page_is_the_last_one() {
    let service = TestServer::start().await;
    for _ in 0..2 {
        service
            .client
            .create(&CreateBoxRequest::of("idle"))
            .await
            .unwrap();
    }
    let reply = service.send(Method::GET, "/v1/boxes?pageSize=2", "").await;
    assert_eq!(reply.json()["boxes"].as_array().unwrap().len(), 2);
    assert!(reply.json().get("next_page_token").is_none());
    service.shut_down().await;
}

#[tokio::test]
async fn the_status_filter_selects_boxes() {
    let service = TestServer::start().await;
    let created = service
        .client
        .create(&CreateBoxRequest::of("idle"))
        .await
        .unwrap();
    let bx = service.start_box(CreateBoxRequest::of("idle")).await;
    let stopped = service.start_box(CreateBoxRequest::of("idle")).await;
    service
        .client
        .stop(&stopped.box_id, &StopBoxRequest::default())
        .await
        .unwrap();
    for (status, expected) in [
        (BoxStatus::Configured, vec![created.box_id]),
        (BoxStatus::Running, vec![bx.box_id.clone()]),
        (BoxStatus::Stopping, vec![]),
        (BoxStatus::Stopped, vec![stopped.box_id]),
        (BoxStatus::Failed, vec![]),
        (BoxStatus::Paused, vec![]),
    ] {
        for size in [1, 100] {
            let query = ListBoxesQuery::default().status(status).page_size(size);
            let page = service.client.boxes(&query).await.unwrap();
            let found: Vec<_> = page.boxes.into_iter().map(|listed| listed.box_id).collect();
            assert_eq!((found, page.next_page_token), (expected.clone(), None));
        }
    }
    service.shut_down().await;
}

#[tokio::test]
async fn invalid_query_parameters_are_rejected() {
    let service = TestServer::start().await;
    for query in [
        "pageSize=0",
        "pageSize=1001",
        "pageSize=-1",
        "pageSize=many",
        "pageToken=mine",
        "pageToken=after-",
        "pageToken=after-%00",
        "status=asleep",
        "status=",
        "pageSize=1&pageSize=2",
    ] {
        let reply = service
            .send(Method::GET, &format!("/v1/boxes?{query}"), "")
            .await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_argument"),
            "{query}"
        );
    }
    service.shut_down().await;
}
