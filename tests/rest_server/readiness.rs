use std::time::Duration;

use reqwest::Method;

use crate::fixture::TestServer;

#[tokio::test]
async fn a_server_is_ready_until_its_reaper_is_down() {
    let service = TestServer::start().await;
    let alive = service.send(Method::GET, "/healthz", "").await;
    assert_eq!((alive.status, alive.text.as_str()), (200, "ok\n"));
    let ready = service.send(Method::GET, "/readyz", "").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &true.into()));

    service.runtime.shutdown(Duration::from_secs(10)).await;
    let down = service.send(Method::GET, "/readyz", "").await;
    assert_eq!(down.status, 503);
    assert_eq!(down.json()["reason"], "the reaper is down");
    let readiness = service.client.readiness().await.unwrap();
    assert!(!readiness.ready && readiness.reason.is_some());
    assert_eq!(service.send(Method::GET, "/healthz", "").await.status, 200);
    let closed = service.send(Method::POST, "/v1/boxes", "{}").await;
    assert_eq!((closed.status, closed.code().as_str()), (503, "stopped"));
    service.shut_down().await;
}
