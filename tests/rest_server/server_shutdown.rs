use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use vmm_rest::wire::{BoxStatus, CreateBoxRequest, StopBoxRequest};
use vmm_rest::{BearerToken, ClientError, Limits};
use vmm_runtime::Removal;

use crate::common::{DEADLINE, boxes, eventually};
use crate::fixture::{
    HEALTH_REQUEST, IGNORES_STOP, NEVER, TOKEN, TestServer, ignores_stop, read_to_end, stop_request,
};

/// Waits until the payload has created the file `name`.
async fn wait_for_file(service: &TestServer, id: &str, name: &str) {
    let file = boxes::box_dir(&service.home, id).join(name);
    eventually(name, || file.exists()).await;
}

#[tokio::test]
async fn shutdown_finishes_running_requests_and_accepts_no_others() {
    let mut service = TestServer::start().await;
    let bx = service.start_box(ignores_stop()).await;
    wait_for_file(&service, &bx.box_id, "up").await;
    let client = service.client.clone();
    let id = bx.box_id.clone();
    let stopping = tokio::spawn(async move {
        let options = StopBoxRequest::default().timeout_seconds(1.0);
        client.stop(&id, &options).await
    });
    wait_for_file(&service, &bx.box_id, "asked").await;
    service.stop_server().await;
    let stopped = stopping.await.unwrap().unwrap();
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(9))
    );
    let error = service.client.me().await.unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }),
        "{error:?}"
    );
    service.shut_down().await;
}

/// Returns limits that never expire.
fn no_timeouts() -> Limits {
    Limits::default()
        .head_timeout(NEVER)
        .body_timeout(NEVER)
        .drain_timeout(NEVER)
}

#[tokio::test]
async fn idle_connections_do_not_delay_shutdown() {
    let mut service = TestServer::with_limits(no_timeouts()).await;
    let mut idle = service.send_raw("").await;
    let mut served = service.send_raw(HEALTH_REQUEST).await;
    served.readable().await.unwrap();
    service.client.me().await.unwrap();
    service.stop_server().await;
    assert_eq!(read_to_end(&mut idle).await, "");
    assert!(
        read_to_end(&mut served)
            .await
            .starts_with("HTTP/1.1 200 OK")
    );
    service.shut_down().await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_unfinished_requests() {
    let mut service = TestServer::with_limits(no_timeouts()).await;
    let mut head = service.send_raw("GET /healthz HTTP/1.1\r\nho").await;
    let mut second = service.send_raw(HEALTH_REQUEST).await;
    second.readable().await.unwrap();
    second
        .write_all(b"GET /v1/me HTTP/1.1\r\nho")
        .await
        .unwrap();
    let mut body = service
        .send_raw(
            "POST /v1/boxes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: 100\r\nexpect: 100-continue\r\n\r\n{",
        )
        .await;
    // The server sends `100 Continue` when the request begins.
    body.readable().await.unwrap();
    service.client.me().await.unwrap();
    service.stop_server().await;
    assert_eq!(read_to_end(&mut head).await, "");
    let response = read_to_end(&mut second).await;
    assert_eq!(response.matches("HTTP/1.1").count(), 1, "{response}");
    let response = read_to_end(&mut body).await;
    assert!(response.contains("HTTP/1.1 503"), "{response}");
    assert!(response.contains(r#""code":"stopped""#), "{response}");
    assert!(service.runtime.list().await.is_empty());
    service.shut_down().await;
}

#[tokio::test]
async fn shutdown_serves_requests_that_have_arrived_unread() {
    let mut service = TestServer::with_limits(no_timeouts()).await;
    let address = service.url.strip_prefix("http://").unwrap().to_owned();
    let unix = || UnixStream::connect(service.socket()).unwrap();
    let tcp = || TcpStream::connect(&address).unwrap();
    let (silent, idle, silent_tcp) = (unix(), unix(), tcp());
    (&idle).write_all(HEALTH_REQUEST.as_bytes()).unwrap();
    let mut idle = tokio_of(idle);
    idle.readable().await.unwrap();
    service.client.me().await.unwrap();
    let bearer = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(bearer)).unwrap();
    bearer.me().await.unwrap();

    // The server runs on the same thread, so it sees none of this before its shutdown.
    let (waiting, waiting_tcp, mute) = (unix(), tcp(), unix());
    idle.try_write(HEALTH_REQUEST.as_bytes()).unwrap();
    for mut stream in [&silent, &waiting] {
        stream.write_all(HEALTH_REQUEST.as_bytes()).unwrap();
    }
    for mut stream in [&silent_tcp, &waiting_tcp] {
        stream.write_all(HEALTH_REQUEST.as_bytes()).unwrap();
    }
    service.stop_server().await;

    for stream in [silent, waiting] {
        assert_last(&read_to_end(&mut tokio_of(stream)).await);
    }
    for stream in [silent_tcp, waiting_tcp] {
        stream.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
        assert_last(&read_to_end(&mut stream).await);
    }
    let both = read_to_end(&mut idle).await;
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "{both}");
    assert_eq!(read_to_end(&mut tokio_of(mute)).await, "");
    service.shut_down().await;
}

#[tokio::test]
async fn shutdown_serves_the_connections_that_wait_for_a_slot() {
    let mut service = TestServer::with_limits(no_timeouts().connections(1)).await;
    let idle = service.send_raw(HEALTH_REQUEST).await;
    idle.readable().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(service.send_raw(HEALTH_REQUEST).await);
    }
    service.stop_server().await;
    for mut stream in waiting {
        assert_last(&read_to_end(&mut stream).await);
    }
    service.shut_down().await;
}

fn tokio_of(stream: UnixStream) -> tokio::net::UnixStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::UnixStream::from_std(stream).unwrap()
}

/// Asserts that this is a successful response, and the last one on its connection.
fn assert_last(response: &str) {
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{response:?}");
    assert!(response.contains("connection: close\r\n"), "{response:?}");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_client_that_reads_no_responses() {
    let limits = no_timeouts().write_timeout(Duration::from_secs(1));
    let mut service = TestServer::with_limits(limits).await;
    let mut stream = service.send_raw("").await;
    // The server reads no more once it cannot write.
    while timeout(
        Duration::from_millis(300),
        stream.write_all(HEALTH_REQUEST.as_bytes()),
    )
    .await
    .is_ok_and(|written| written.is_ok())
    {}
    service.stop_server().await;
    service.shut_down().await;
}

#[tokio::test]
async fn shutdown_ends_event_streams() {
    let mut service = TestServer::start().await;
    let mut events = service.client.events().await.unwrap();
    service
        .client
        .create(&CreateBoxRequest::of("idle"))
        .await
        .unwrap();
    service.stop_server().await;
    assert!(events.next().await.unwrap().is_ok());
    assert!(events.next().await.is_none());
    service.shut_down().await;
}

#[tokio::test]
async fn shutdown_interrupts_requests_at_the_drain_timeout() {
    let mut service =
        TestServer::with_limits(Limits::default().drain_timeout(Duration::from_millis(50))).await;
    let bx = service.start_box(ignores_stop()).await;
    wait_for_file(&service, &bx.box_id, "up").await;
    let client = service.client.clone();
    let id = bx.box_id.clone();
    let stopping = tokio::spawn(async move { client.stop(&id, &StopBoxRequest::default()).await });
    wait_for_file(&service, &bx.box_id, "asked").await;
    service.stop_server().await;
    let result = tokio::time::timeout(DEADLINE, stopping)
        .await
        .unwrap()
        .unwrap();
    assert!(
        matches!(result, Err(ClientError::Interrupted { .. })),
        "{result:?}"
    );
    service
        .runtime
        .remove(&bx.box_id, Removal::Force)
        .await
        .unwrap();
    service.shut_down().await;
}

#[tokio::test]
async fn a_stalled_event_reader_does_not_delay_shutdown() {
    let limits = no_timeouts().write_timeout(NEVER);
    let mut service = TestServer::with_limits(limits).await;
    let stalled = service
        .send_raw("GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    // The server sends the head when it admits the reader.
    stalled.readable().await.unwrap();
    // More events than a socket buffer holds.
    for _ in 0..1000 {
        service
            .client
            .create(&CreateBoxRequest::of("idle"))
            .await
            .unwrap();
    }
    service.stop_server().await;
    service.shut_down().await;
}

#[tokio::test]
async fn a_connection_that_requested_the_event_head_is_drained_as_any_other() {
    let mut service = TestServer::start().await;
    let bx = service.start_box(ignores_stop()).await;
    wait_for_file(&service, &bx.box_id, "up").await;
    let mut stream = service
        .send_raw("HEAD /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    stream.readable().await.unwrap();
    // Longer than the server waits for an event reader.
    let request = stop_request(&bx.box_id, 3.0);
    stream.write_all(request.as_bytes()).await.unwrap();
    wait_for_file(&service, &bx.box_id, "asked").await;
    service.stop_server().await;
    let response = read_to_end(&mut stream).await;
    assert!(response.contains(r#""status":"stopped""#), "{response}");
    service.shut_down().await;
}

#[tokio::test]
async fn shutdown_finishes_a_request_with_a_key_that_timed_out() {
    let limits = Limits::default().request_timeout(Duration::from_millis(100));
    let mut service = TestServer::with_limits(limits).await;
    // Not over HTTP, because the start may exceed the request timeout.
    let bx = boxes::start_box(&service.runtime, boxes::script(IGNORES_STOP)).await;
    wait_for_file(&service, &bx.id, "up").await;
    let (runtime, id) = (service.runtime.clone(), bx.id.clone());
    let stopping = tokio::spawn(async move { runtime.stop_within(&id, NEVER).await });
    wait_for_file(&service, &bx.id, "asked").await;
    // The start waits for the stop.
    let target = format!("/v1/boxes/{}/start", bx.id);
    let key = [("idempotency-key", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f")];
    let start = service.send_with(Method::POST, &target, "", &key);
    assert_eq!(start.await.status, 408);
    let go = boxes::box_dir(&service.home, &bx.id).join("go");
    // The shutdown begins before the payload exits.
    tokio::join!(service.stop_server(), async {
        std::fs::write(go, "").unwrap();
    });
    stopping.await.unwrap().unwrap();
    let again = service.runtime.info(&bx.id).await.unwrap();
    assert_eq!(again.status, vmm_runtime::BoxStatus::Running);
    service
        .runtime
        .remove(&bx.id, Removal::Force)
        .await
        .unwrap();
    service.shut_down().await;
}
