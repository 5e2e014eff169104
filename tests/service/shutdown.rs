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

use crate::common::{DEADLINE, boxes, eventually};
use crate::fixture::{DEAF, NEVER, QUESTION, Service, TOKEN, deaf, heard, stop};

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

/// No limit helps.
fn patient() -> Limits {
    Limits::default()
        .head_timeout(NEVER)
        .body_timeout(NEVER)
        .drain_timeout(NEVER)
}

#[tokio::test]
async fn connections_that_ask_for_nothing_do_not_delay_the_end() {
    let mut service = Service::with(patient()).await;
    let mut idle = service.saying("").await;
    let mut asked = service.saying(QUESTION).await;
    asked.readable().await.unwrap();
    service.client.me().await.unwrap();
    service.end_server().await;
    assert_eq!(heard(&mut idle).await, "");
    assert!(heard(&mut asked).await.starts_with("HTTP/1.1 200 OK"));
    service.end().await;
}

#[tokio::test]
async fn requests_that_have_not_arrived_are_not_waited_for() {
    let mut service = Service::with(patient()).await;
    let mut head = service.saying("GET /healthz HTTP/1.1\r\nho").await;
    let mut second = service.saying(QUESTION).await;
    second.readable().await.unwrap();
    second
        .write_all(b"GET /v1/me HTTP/1.1\r\nho")
        .await
        .unwrap();
    let mut body = service
        .saying(
            "POST /v1/boxes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: 100\r\nexpect: 100-continue\r\n\r\n{",
        )
        .await;
    // It has begun when it is told to go on.
    body.readable().await.unwrap();
    service.client.me().await.unwrap();
    service.end_server().await;
    assert_eq!(heard(&mut head).await, "");
    let answer = heard(&mut second).await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    let answer = heard(&mut body).await;
    assert!(answer.contains("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains(r#""code":"stopped""#), "{answer}");
    assert!(service.runtime.list().await.is_empty());
    service.end().await;
}

#[tokio::test]
async fn requests_that_have_arrived_are_answered_although_nobody_has_read_them() {
    let mut service = Service::with(patient()).await;
    let address = service.url.strip_prefix("http://").unwrap().to_owned();
    let unix = || UnixStream::connect(service.socket()).unwrap();
    let tcp = || TcpStream::connect(&address).unwrap();
    let (silent, idle, silent_tcp) = (unix(), unix(), tcp());
    (&idle).write_all(QUESTION.as_bytes()).unwrap();
    let mut idle = tokio_of(idle);
    idle.readable().await.unwrap();
    service.client.me().await.unwrap();
    let bearer = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(bearer)).unwrap();
    bearer.me().await.unwrap();

    // The server, in the same thread, sees nothing of this before it is to end.
    let (waiting, waiting_tcp, mute) = (unix(), tcp(), unix());
    idle.try_write(QUESTION.as_bytes()).unwrap();
    for mut stream in [&silent, &waiting] {
        stream.write_all(QUESTION.as_bytes()).unwrap();
    }
    for mut stream in [&silent_tcp, &waiting_tcp] {
        stream.write_all(QUESTION.as_bytes()).unwrap();
    }
    service.end_server().await;

    for stream in [silent, waiting] {
        assert_last(&heard(&mut tokio_of(stream)).await);
    }
    for stream in [silent_tcp, waiting_tcp] {
        stream.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
        assert_last(&heard(&mut stream).await);
    }
    let both = heard(&mut idle).await;
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "{both}");
    assert_eq!(heard(&mut tokio_of(mute)).await, "");
    service.end().await;
}

#[tokio::test]
async fn whoever_waits_for_a_turn_at_the_end_has_it() {
    let mut service = Service::with(patient().connections(1)).await;
    let idle = service.saying(QUESTION).await;
    idle.readable().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(service.saying(QUESTION).await);
    }
    service.end_server().await;
    for mut stream in waiting {
        assert_last(&heard(&mut stream).await);
    }
    service.end().await;
}

fn tokio_of(stream: UnixStream) -> tokio::net::UnixStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::UnixStream::from_std(stream).unwrap()
}

/// A good answer, and the last.
fn assert_last(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:?}");
    assert!(answer.contains("connection: close\r\n"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_reads_no_answer_is_not_waited_for() {
    let limits = patient().write_timeout(Duration::from_secs(1));
    let mut service = Service::with(limits).await;
    let mut deaf = service.saying("").await;
    // The server takes no more once it cannot answer.
    while timeout(
        Duration::from_millis(300),
        deaf.write_all(QUESTION.as_bytes()),
    )
    .await
    .is_ok_and(|written| written.is_ok())
    {}
    service.end_server().await;
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
        matches!(given_up, Err(ClientError::Interrupted { .. })),
        "{given_up:?}"
    );
    service.runtime.remove(&running.box_id, true).await.unwrap();
    service.end().await;
}

#[tokio::test]
async fn a_reader_of_events_that_reads_none_does_not_delay_the_end() {
    let limits = patient().write_timeout(NEVER);
    let mut service = Service::with(limits).await;
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
    service.end_server().await;
    service.end().await;
}

#[tokio::test]
async fn whoever_has_asked_about_events_before_is_answered_to_the_end() {
    let mut service = Service::start().await;
    let running = service.started(deaf()).await;
    sign(&service, &running.box_id, "up").await;
    let mut stream = service
        .saying("HEAD /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    stream.readable().await.unwrap();
    // Longer than a reader of events is waited for.
    let stop = stop(&running.box_id, 3.0);
    stream.write_all(stop.as_bytes()).await.unwrap();
    sign(&service, &running.box_id, "asked").await;
    service.end_server().await;
    let answer = heard(&mut stream).await;
    assert!(answer.contains(r#""status":"stopped""#), "{answer}");
    service.end().await;
}

#[tokio::test]
async fn a_request_with_a_key_is_finished_although_its_client_waits_no_longer() {
    let limits = Limits::default().request_timeout(Duration::from_millis(100));
    let mut service = Service::with(limits).await;
    // Not over HTTP: a start may take longer than that.
    let running = boxes::started(&service.runtime, boxes::script(DEAF)).await;
    sign(&service, &running.id, "up").await;
    let (runtime, id) = (service.runtime.clone(), running.id.clone());
    let stopping = tokio::spawn(async move { runtime.stop_within(&id, NEVER).await });
    sign(&service, &running.id, "asked").await;
    // Waits until it has stopped.
    let target = format!("/v1/boxes/{}/start", running.id);
    let key = [("idempotency-key", "017f22e2-79b0-7cc3-98c4-dc0c0c07398f")];
    let late = service.send_with(Method::POST, &target, "", &key);
    assert_eq!(late.await.status, 408);
    let go = boxes::dir_of(&service.home, &running.id).join("go");
    // The server has been told to end before the payload is.
    tokio::join!(service.end_server(), async {
        std::fs::write(go, "").unwrap();
    });
    stopping.await.unwrap().unwrap();
    let again = service.runtime.info(&running.id).await.unwrap();
    assert_eq!(again.status, vmm_runtime::BoxStatus::Running);
    service.runtime.remove(&running.id, true).await.unwrap();
    service.end().await;
}
