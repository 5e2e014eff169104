use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmm_rest::wire::{BoxStatus, CreateBoxRequest, ErrorCode, StopBoxRequest};
use vmm_rest::{BearerToken, ImageTable, Limits, Listener, Server};
use vmm_runtime::Removal;

use crate::common::{DEADLINE, boxes, eventually};
use crate::fixture::{HEALTH_REQUEST, NEVER, TOKEN, TestServer, read_to_end};

const EVENTS: &str = "GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_connection_with_an_unfinished_head_is_closed() {
    let limits = Limits::default().head_timeout(Duration::from_millis(100));
    let service = TestServer::with_limits(limits).await;
    for beginning in ["", "GET /v1/boxes HTTP/1.1\r\nhost:"] {
        let response = read_to_end(&mut service.send_raw(beginning).await).await;
        assert_eq!(response, "");
    }
    // Sending a byte now and then does not extend the time limit.
    let mut slow = service.send_raw("GET /").await;
    let writes = async {
        while slow.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, writes).await.unwrap();
    service.shut_down().await;
}

#[tokio::test]
async fn the_highest_limits_are_accepted() {
    let limits = Limits::default()
        .body_bytes(usize::MAX)
        .head_timeout(Duration::MAX)
        .body_timeout(Duration::MAX)
        .request_timeout(Duration::MAX)
        .write_timeout(Duration::MAX)
        .connections(usize::MAX)
        .streams(usize::MAX)
        .reaper_stall_timeout(Duration::MAX)
        .drain_timeout(Duration::MAX);
    let service = TestServer::with_limits(limits).await;
    service
        .client
        .create(&CreateBoxRequest::of("idle"))
        .await
        .unwrap();
    assert!(service.client.readiness().await.unwrap().ready);
    drop(service.client.events().await.unwrap());
    service.shut_down().await;
}

#[tokio::test]
async fn an_unfinished_body_times_out() {
    let limits = Limits::default().body_timeout(Duration::from_millis(100));
    let service = TestServer::with_limits(limits).await;
    let beginning = "POST /v1/boxes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                     content-length: 100\r\n\r\n{";
    let response = read_to_end(&mut service.send_raw(beginning).await).await;
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    assert!(response.contains(r#""code":"timeout""#), "{response}");
    service.shut_down().await;
}

#[tokio::test]
async fn a_client_that_reads_no_responses_is_disconnected() {
    let limits = Limits::default()
        .connections(1)
        .head_timeout(NEVER)
        .write_timeout(Duration::from_millis(100));
    let service = TestServer::with_limits(limits).await;
    let mut stream = service.send_raw("").await;
    let writes = async { while stream.write_all(HEALTH_REQUEST.as_bytes()).await.is_ok() {} };
    timeout(DEADLINE, writes).await.unwrap();
    service.client.me().await.unwrap();
    service.shut_down().await;
}

#[tokio::test]
async fn a_request_that_times_out_leaves_its_operation_running() {
    let limits = Limits::default().request_timeout(Duration::from_millis(100));
    let service = TestServer::with_limits(limits).await;
    // Not over HTTP, because the start may exceed the request timeout.
    let spec = boxes::script(crate::fixture::IGNORES_STOP);
    let bx = boxes::start_box(&service.runtime, spec).await;
    let up = boxes::box_dir(&service.home, &bx.id).join("up");
    eventually("the payload is up", || up.exists()).await;
    let stopping = service.runtime.stop_within(&bx.id, NEVER);
    let client = async {
        let asked = boxes::box_dir(&service.home, &bx.id).join("asked");
        eventually("the payload gets SIGTERM", || asked.exists()).await;
        // The start waits for the stop.
        let result = service.client.start(&bx.id).await;
        assert_eq!(result.unwrap_err().code(), Some(ErrorCode::Timeout));
        service
            .runtime
            .remove(&bx.id, Removal::Force)
            .await
            .unwrap();
    };
    let _ = tokio::join!(stopping, client);
    service.shut_down().await;
}

#[tokio::test]
async fn a_stop_is_not_bounded_by_the_request_timeout() {
    let limit = Duration::from_millis(100);
    let service = TestServer::with_limits(Limits::default().request_timeout(limit)).await;
    let spec = boxes::script(crate::fixture::IGNORES_STOP);
    let bx = boxes::start_box(&service.runtime, spec).await;
    let up = boxes::box_dir(&service.home, &bx.id).join("up");
    eventually("the payload is up", || up.exists()).await;
    let options = StopBoxRequest::default().timeout_seconds(60.0);
    let stopping = service.client.stop(&bx.id, &options);
    let client = async {
        let asked = boxes::box_dir(&service.home, &bx.id).join("asked");
        eventually("the payload gets SIGTERM", || asked.exists()).await;
        tokio::time::sleep(5 * limit).await;
        boxes::send_go(&service.home, &bx.id);
    };
    let (stopped, ()) = tokio::join!(stopping, client);
    let stopped = stopped.unwrap();
    assert_eq!(
        (stopped.status, stopped.exit_code),
        (BoxStatus::Stopped, Some(0))
    );
    service.shut_down().await;
}

#[tokio::test]
async fn a_stop_accepts_any_non_negative_timeout() {
    let service = TestServer::start().await;
    let bx = service.start_box(CreateBoxRequest::of("idle")).await;
    let stop = async |seconds| {
        let options = StopBoxRequest::default().timeout_seconds(seconds);
        service.client.stop(&bx.box_id, &options).await
    };
    let error = stop(-1.0).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidArgument));
    assert!(error.to_string().contains("timeout_seconds"), "{error}");
    let stopped = stop(1e300).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    service.shut_down().await;
}

#[tokio::test]
async fn excess_connections_wait_for_a_free_slot() {
    let limits = Limits::default()
        .connections(1)
        .head_timeout(Duration::from_millis(100));
    let service = TestServer::with_limits(limits).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(service.send_raw("").await);
    }
    // Served after the server has closed the earlier connections.
    service.client.me().await.unwrap();
    drop(idle);
    service.shut_down().await;
}

#[tokio::test]
async fn tcp_listeners_share_slots_that_the_socket_does_not_use() {
    let mut service = TestServer::start().await;
    service.stop_server().await;
    let token = || BearerToken::new(TOKEN).unwrap();
    let mut listeners = vec![Listener::unix(&service.socket()).await.unwrap()];
    for _ in 0..2 {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), Some(token()));
        listeners.push(listener.await.unwrap());
    }
    let addresses: Vec<_> = listeners.iter().filter_map(Listener::local_addr).collect();
    let limits = Limits::default().connections(1).head_timeout(NEVER);
    let shutdown = CancellationToken::new();
    let server = Server::new(&service.runtime, ImageTable::builtin(), limits, &shutdown);
    let serving = tokio::spawn(server.serve(listeners));

    let first = send_authenticated(addresses[0]).await;
    first.readable().await.unwrap();
    let second = send_authenticated(addresses[1]).await;
    service.client.me().await.unwrap();
    let early = timeout(Duration::from_millis(300), second.readable()).await;
    assert!(early.is_err(), "the limit admits two connections");
    drop(first);
    let readable = timeout(DEADLINE, second.readable()).await;
    readable.expect("the free slot is not used").unwrap();

    shutdown.cancel();
    serving.await.unwrap();
    service.shut_down().await;
}

/// Opens a connection and sends a request with the token.
async fn send_authenticated(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn unauthenticated_connections_are_closed_to_free_slots() {
    let limits = Limits::default()
        .connections(4)
        .head_timeout(NEVER)
        .body_timeout(NEVER);
    let service = TestServer::with_limits(limits).await;
    let address = service.url.strip_prefix("http://").unwrap();
    let mut authenticated = send_authenticated(address.parse().unwrap()).await;
    authenticated.readable().await.unwrap();

    // Unfinished requests: nothing, half a head, half a body.
    let beginnings = [
        "",
        "GET /v1/me HTTP/1.1\r\nhost:",
        "GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ];
    let mut unfinished = Vec::new();
    for text in beginnings.into_iter().cycle().take(60) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may have closed the connection already.
        let _ = stream.write_all(text.as_bytes()).await;
        unfinished.push(stream);
    }
    for _ in 0..10 {
        let token = BearerToken::new(TOKEN).unwrap();
        let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
        timeout(DEADLINE, bearer.me()).await.unwrap().unwrap();
    }

    // The server closes the oldest connection first, and never an authenticated one.
    assert_eq!(read_to_end(&mut unfinished[0]).await, "");
    let last_request = "GET /v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                    authorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n";
    authenticated
        .write_all(last_request.as_bytes())
        .await
        .unwrap();
    let responses = read_to_end(&mut authenticated).await;
    assert_eq!(
        responses.matches("HTTP/1.1 200 OK").count(),
        2,
        "{responses}"
    );
    drop(unfinished);
    service.shut_down().await;
}

#[tokio::test]
async fn an_unauthenticated_connection_is_closed_after_its_response() {
    let limits = Limits::default().connections(1).head_timeout(NEVER);
    let service = TestServer::with_limits(limits).await;
    let address = service.url.strip_prefix("http://").unwrap();
    let token = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
    for (target, status) in [
        ("/healthz", 200),
        ("/v1/config", 200),
        ("/v1/me", 401),
        ("/nowhere", 401),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let response = read_to_end(&mut stream).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status}")),
            "{response}"
        );
        assert!(response.contains("\r\nconnection: close\r\n"), "{response}");
    }
    timeout(DEADLINE, bearer.me()).await.unwrap().unwrap();
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_requests_get_responses() {
    crate::common::allow_descriptors(4096);
    let service = TestServer::start().await;
    let request = CreateBoxRequest::of("idle");
    let creations = (0..1000).map(|_| async {
        let client = vmm_rest::Client::unix(&service.socket()).unwrap();
        client.create(&request).await
    });
    for result in join_all(creations).await {
        result.unwrap();
    }
    let mut ids: Vec<_> = service.client.all_boxes().await.unwrap();
    ids.dedup_by(|a, b| a.box_id == b.box_id);
    assert_eq!(ids.len(), 1000);
    assert_eq!(
        service.client.metrics().await.unwrap().boxes_created_total,
        1000
    );
    service.shut_down().await;
}

#[tokio::test]
async fn excess_event_readers_are_rejected() {
    let service = TestServer::with_limits(Limits::default().streams(1)).await;
    let first = service.client.events().await.unwrap();
    let error = service.client.events().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ResourceExhausted));
    drop(first);
    let deadline = std::time::Instant::now() + DEADLINE;
    let mut second = loop {
        match service.client.events().await {
            Ok(events) => break events,
            // Until the server notices that the first reader is gone.
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    };
    service
        .client
        .create(&CreateBoxRequest::of("idle").name("x"))
        .await
        .unwrap();
    while second.next().await.unwrap().unwrap().state.name.as_deref() != Some("x") {}
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_readers_that_disconnect_free_their_slots() {
    let service = TestServer::with_limits(Limits::default().streams(64)).await;
    let token = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
    // Several times the limit. No event is sent to these readers.
    for _ in 0..200 {
        for client in [&service.client, &bearer] {
            drop(client.events().await.unwrap());
        }
    }
    service.shut_down().await;
}

#[tokio::test]
async fn a_new_event_reader_waits_for_a_free_slot() {
    let service = TestServer::with_limits(Limits::default().streams(1)).await;
    let deadline = std::time::Instant::now() + DEADLINE;
    // The server waits briefly, so a slow test retries.
    loop {
        let mut first = service.send_raw(EVENTS).await;
        let first_is_admitted = is_admitted(&mut first).await;
        let mut second = service.send_raw(EVENTS).await;
        // After this response the server has seen both readers.
        service.client.me().await.unwrap();
        drop(first);
        // If the first reader was rejected, the second one had no slot to wait for.
        if is_admitted(&mut second).await && first_is_admitted {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the server does not wait for a free slot"
        );
    }
    service.shut_down().await;
}

/// Returns whether the response has status 200.
async fn is_admitted(stream: &mut UnixStream) -> bool {
    let mut status = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut status).await.unwrap();
    &status == b"HTTP/1.1 200"
}

#[tokio::test]
async fn a_half_closed_event_reader_frees_its_slot() {
    let service = TestServer::with_limits(Limits::default().streams(1)).await;
    let mut reader = service.send_raw(EVENTS).await;
    reader.readable().await.unwrap();
    reader.shutdown().await.unwrap();
    let response = read_to_end(&mut reader).await;
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
    assert!(response.ends_with("\r\n0\r\n\r\n"), "{response}");
    drop(service.client.events().await.unwrap());
    service.shut_down().await;
}

#[tokio::test]
async fn stalled_event_readers_free_their_slots() {
    let limits = Limits::default()
        .streams(1)
        .write_timeout(Duration::from_millis(100));
    let service = TestServer::with_limits(limits).await;
    let stalled = service.send_raw(EVENTS).await;
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
    let deadline = std::time::Instant::now() + DEADLINE;
    while let Err(error) = service.client.events().await {
        assert_eq!(error.code(), Some(ErrorCode::ResourceExhausted));
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
    service.shut_down().await;
}
