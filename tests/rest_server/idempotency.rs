use futures::future::join_all;
use reqwest::Method;
use vmm_rest::wire::CreateBoxRequest;

use crate::common::eventually;
use crate::fixture::TestServer;

const KEY: &str = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f";
const OTHER: &str = "017f22e2-79b0-7cc3-98c4-dc0c0c073990";

#[tokio::test]
async fn the_same_request_with_the_same_key_runs_once() {
    let service = TestServer::start().await;
    let post = || service.send_with(Method::POST, "/v1/boxes", "{}", &[("idempotency-key", KEY)]);
    let replies = join_all((0..16).map(|_| post())).await;
    for reply in &replies {
        assert_eq!((reply.status, &reply.text), (201, &replies[0].text));
        assert_eq!(reply.headers["location"], replies[0].headers["location"]);
    }
    let again = post().await;
    assert_eq!(again.text, replies[0].text);
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_ne!(
        again.headers["x-request-id"],
        replies[0].headers["x-request-id"]
    );
    assert_eq!(service.runtime.list().await.len(), 1);

    let request = CreateBoxRequest::of("idle");
    let first = service.client.create_once(&request, OTHER).await.unwrap();
    let second = service.client.create_once(&request, OTHER).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(service.runtime.list().await.len(), 2);
    service.shut_down().await;
}

#[tokio::test]
async fn a_rejected_request_does_not_use_its_key() {
    let service = TestServer::start().await;
    let key = [("idempotency-key", KEY)];
    let remove = || service.send_with(Method::DELETE, "/v1/boxes/x", "", &key);
    assert_eq!(remove().await.status, 404);
    let named = CreateBoxRequest::of("idle").name("x");
    service.client.create(&named).await.unwrap();
    assert_eq!(remove().await.status, 204);
    let again = remove().await;
    assert_eq!(again.status, 204);
    assert_eq!(again.headers["idempotent-replayed"], "true");
    service.shut_down().await;
}

#[tokio::test]
async fn a_rejection_quotes_the_request_in_part_only() {
    let service = TestServer::start().await;
    let body = format!(r#"{{"image": "{}"}}"#, "x".repeat(500_000));
    let reply = service.send(Method::POST, "/v1/boxes", &body).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (422, "image_pull_failed")
    );
    assert!(reply.text.len() < 2000, "{} bytes", reply.text.len());
    service.shut_down().await;
}

#[tokio::test]
async fn a_key_belongs_to_one_request() {
    let service = TestServer::start().await;
    let key = [("idempotency-key", KEY)];
    let first = service
        .send_with(Method::POST, "/v1/boxes", "{}", &key)
        .await;
    assert_eq!(first.status, 201);
    for (method, target, body) in [
        (Method::POST, "/v1/boxes", r#"{"name": "x"}"#),
        (Method::POST, "/v1/boxes?x", "{}"),
        (Method::DELETE, "/v1/boxes/x", ""),
        (Method::POST, "/v1/boxes/x/start", ""),
    ] {
        let reply = service.send_with(method, target, body, &key).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (422, "invalid_argument"),
            "{target}"
        );
    }
    for wrong in ["", "1", "not-a-uuid-not-a-uuid-not-a-uuid-not"] {
        let key = [("idempotency-key", wrong)];
        let reply = service
            .send_with(Method::POST, "/v1/boxes", "{}", &key)
            .await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_argument"),
            "{wrong}"
        );
    }
    let read = service.send_with(Method::GET, "/v1/boxes", "", &key).await;
    assert_eq!(read.status, 200);
    service.shut_down().await;
}

#[tokio::test]
async fn a_client_that_disconnected_finds_the_result_of_its_request() {
    let service = TestServer::start().await;
    let request = format!(
        "POST /v1/boxes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         idempotency-key: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    let stream = service.send_raw(&request).await;
    // Once its box exists, the request is running.
    eventually("the box exists", || {
        futures::executor::block_on(service.runtime.list()).len() == 1
    })
    .await;
    drop(stream);
    let again = [("idempotency-key", KEY)];
    let reply = service
        .send_with(Method::POST, "/v1/boxes", "{}", &again)
        .await;
    assert_eq!(reply.status, 201);
    assert_eq!(reply.headers["idempotent-replayed"], "true");
    assert_eq!(service.runtime.list().await.len(), 1);
    service.shut_down().await;
}

#[tokio::test]
async fn a_server_error_is_not_stored() {
    let service = TestServer::start().await;
    service
        .runtime
        .shutdown(std::time::Duration::from_secs(10))
        .await;
    for _ in 0..2 {
        let key = [("idempotency-key", KEY)];
        let reply = service
            .send_with(Method::POST, "/v1/boxes", "{}", &key)
            .await;
        assert_eq!(reply.status, 503);
        assert!(!reply.headers.contains_key("idempotent-replayed"));
    }
    service.shut_down().await;
}

#[tokio::test]
async fn an_unsupported_method_does_not_use_its_key() {
    let service = TestServer::start().await;
    let key = [("idempotency-key", KEY)];
    let wrong = service
        .send_with(Method::DELETE, "/v1/boxes", "", &key)
        .await;
    assert_eq!(wrong.status, 405);
    let right = service
        .send_with(Method::POST, "/v1/boxes", "{}", &key)
        .await;
    assert_eq!(right.status, 201);
    service.shut_down().await;
}
