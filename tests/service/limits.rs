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

use crate::common::{DEADLINE, boxes, eventually};
use crate::fixture::{NEVER, QUESTION, Service, TOKEN, heard};

const EVENTS: &str = "GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn whoever_does_not_finish_a_head_is_hung_up_on() {
    let limits = Limits::default().head_timeout(Duration::from_millis(100));
    let service = Service::with(limits).await;
    for beginning in ["", "GET /v1/boxes HTTP/1.1\r\nhost:"] {
        let answer = heard(&mut service.saying(beginning).await).await;
        assert_eq!(answer, "");
    }
    // A byte now and then does not buy more time.
    let mut drop_by_drop = service.saying("GET /").await;
    let ended = async {
        while drop_by_drop.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, ended).await.unwrap();
    service.end().await;
}

#[tokio::test]
async fn limits_may_be_as_high_as_they_can_be() {
    let limits = Limits::default()
        .body_bytes(usize::MAX)
        .head_timeout(Duration::MAX)
        .body_timeout(Duration::MAX)
        .request_timeout(Duration::MAX)
        .write_timeout(Duration::MAX)
        .connections(usize::MAX)
        .event_readers(usize::MAX)
        .reaper_stall_timeout(Duration::MAX)
        .drain_timeout(Duration::MAX);
    let service = Service::with(limits).await;
    service
        .client
        .create(&CreateBoxRequest::of("idle"))
        .await
        .unwrap();
    assert!(service.client.readiness().await.unwrap().ready);
    drop(service.client.events().await.unwrap());
    service.end().await;
}

#[tokio::test]
async fn whoever_does_not_finish_a_body_is_told_so() {
    let limits = Limits::default().body_timeout(Duration::from_millis(100));
    let service = Service::with(limits).await;
    let beginning = "POST /v1/boxes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                     content-length: 100\r\n\r\n{";
    let answer = heard(&mut service.saying(beginning).await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains(r#""code":"timeout""#), "{answer}");
    service.end().await;
}

#[tokio::test]
async fn whoever_reads_no_answers_is_hung_up_on() {
    let limits = Limits::default()
        .connections(1)
        .head_timeout(NEVER)
        .write_timeout(Duration::from_millis(100));
    let service = Service::with(limits).await;
    let mut deaf = service.saying("").await;
    let asked = async { while deaf.write_all(QUESTION.as_bytes()).await.is_ok() {} };
    timeout(DEADLINE, asked).await.unwrap();
    service.client.me().await.unwrap();
    service.end().await;
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up_and_what_it_began_goes_on() {
    let limits = Limits::default().request_timeout(Duration::from_millis(100));
    let service = Service::with(limits).await;
    // Not over HTTP: a start may take longer than that.
    let stubborn = boxes::script(crate::fixture::DEAF);
    let running = boxes::started(&service.runtime, stubborn).await;
    let up = boxes::dir_of(&service.home, &running.id).join("up");
    eventually("the payload is up", || up.exists()).await;
    let stopping = service.runtime.stop_within(&running.id, NEVER);
    let late = async {
        let asked = boxes::dir_of(&service.home, &running.id).join("asked");
        eventually("the payload is asked to stop", || asked.exists()).await;
        // Waits until it has stopped.
        let late = service.client.start(&running.id).await;
        assert_eq!(late.unwrap_err().code(), Some(ErrorCode::Timeout));
        service.runtime.remove(&running.id, true).await.unwrap();
    };
    let _ = tokio::join!(stopping, late);
    service.end().await;
}

#[tokio::test]
async fn a_stop_is_answered_however_long_it_gives_the_box() {
    let limit = Duration::from_millis(100);
    let service = Service::with(Limits::default().request_timeout(limit)).await;
    let stubborn = boxes::script(crate::fixture::DEAF);
    let running = boxes::started(&service.runtime, stubborn).await;
    let up = boxes::dir_of(&service.home, &running.id).join("up");
    eventually("the payload is up", || up.exists()).await;
    let patience = StopBoxRequest::default().timeout_seconds(60.0);
    let stopping = service.client.stop(&running.id, &patience);
    let late = async {
        let asked = boxes::dir_of(&service.home, &running.id).join("asked");
        eventually("the payload is asked to stop", || asked.exists()).await;
        tokio::time::sleep(5 * limit).await;
        boxes::go(&service.home, &running.id);
    };
    let (stopped, ()) = tokio::join!(stopping, late);
    let stopped = stopped.unwrap();
    assert_eq!(
        (stopped.status, stopped.exit_code),
        (BoxStatus::Stopped, Some(0))
    );
    service.end().await;
}

#[tokio::test]
async fn a_stop_takes_every_span_of_time() {
    let service = Service::start().await;
    let running = service.started(CreateBoxRequest::of("idle")).await;
    let stop = async |seconds| {
        let patience = StopBoxRequest::default().timeout_seconds(seconds);
        service.client.stop(&running.box_id, &patience).await
    };
    let refused = stop(-1.0).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::InvalidArgument));
    assert!(refused.to_string().contains("timeout_seconds"), "{refused}");
    let stopped = stop(1e300).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    service.end().await;
}

#[tokio::test]
async fn more_connections_than_there_may_be_wait_for_their_turn() {
    let limits = Limits::default()
        .connections(1)
        .head_timeout(Duration::from_millis(100));
    let service = Service::with(limits).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(service.saying("").await);
    }
    // Served when those before it have been hung up on.
    service.client.me().await.unwrap();
    drop(idle);
    service.end().await;
}

#[tokio::test]
async fn strangers_share_their_room_and_leave_the_owners() {
    let mut service = Service::start().await;
    service.end_server().await;
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

    let first = asking(addresses[0]).await;
    first.readable().await.unwrap();
    let second = asking(addresses[1]).await;
    service.client.me().await.unwrap();
    let soon = timeout(Duration::from_millis(300), second.readable()).await;
    assert!(soon.is_err(), "there is room for two");
    drop(first);
    let answered = timeout(DEADLINE, second.readable()).await;
    answered.expect("there is no room for one").unwrap();

    shutdown.cancel();
    serving.await.unwrap();
    service.end().await;
}

/// With the token.
async fn asking(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let question =
        format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(question.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn unauthenticated_connections_make_room_for_others() {
    let limits = Limits::default()
        .connections(4)
        .head_timeout(NEVER)
        .body_timeout(NEVER);
    let service = Service::with(limits).await;
    let address = service.url.strip_prefix("http://").unwrap();
    let mut authenticated = asking(address.parse().unwrap()).await;
    authenticated.readable().await.unwrap();

    // All of this is unfinished: nothing, half a head, half a body.
    let silent = [
        "",
        "GET /v1/me HTTP/1.1\r\nhost:",
        "GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ];
    let mut unfinished = Vec::new();
    for text in silent.into_iter().cycle().take(60) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may have been closed already.
        let _ = stream.write_all(text.as_bytes()).await;
        unfinished.push(stream);
    }
    for _ in 0..10 {
        let token = BearerToken::new(TOKEN).unwrap();
        let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
        timeout(DEADLINE, bearer.me()).await.unwrap().unwrap();
    }

    // The oldest connection is closed first, and none that has authenticated.
    assert_eq!(heard(&mut unfinished[0]).await, "");
    let farewell = "GET /v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                    authorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n";
    authenticated.write_all(farewell.as_bytes()).await.unwrap();
    let answers = heard(&mut authenticated).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    drop(unfinished);
    service.end().await;
}

#[tokio::test]
async fn a_stranger_who_has_been_answered_is_hung_up_on() {
    let limits = Limits::default().connections(1).head_timeout(NEVER);
    let service = Service::with(limits).await;
    let address = service.url.strip_prefix("http://").unwrap();
    let token = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
    for (target, status) in [
        ("/healthz", 200),
        ("/v1/config", 200),
        ("/v1/me", 401),
        ("/nowhere", 401),
    ] {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let question = format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n");
        stranger.write_all(question.as_bytes()).await.unwrap();
        let answer = heard(&mut stranger).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
    timeout(DEADLINE, bearer.me()).await.unwrap().unwrap();
    service.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_at_once_are_all_answered() {
    crate::common::allow_descriptors(4096);
    let service = Service::start().await;
    let request = CreateBoxRequest::of("idle");
    let creations = (0..1000).map(|_| async {
        let fresh = vmm_rest::Client::unix(&service.socket()).unwrap();
        fresh.create(&request).await
    });
    for made in join_all(creations).await {
        made.unwrap();
    }
    let mut ids: Vec<_> = service.client.all_boxes().await.unwrap();
    ids.dedup_by(|a, b| a.box_id == b.box_id);
    assert_eq!(ids.len(), 1000);
    assert_eq!(
        service.client.metrics().await.unwrap().boxes_created_total,
        1000
    );
    service.end().await;
}

#[tokio::test]
async fn more_readers_of_events_than_there_may_be_are_refused() {
    let service = Service::with(Limits::default().event_readers(1)).await;
    let first = service.client.events().await.unwrap();
    let refused = service.client.events().await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::ResourceExhausted));
    drop(first);
    let deadline = std::time::Instant::now() + DEADLINE;
    let mut second = loop {
        match service.client.events().await {
            Ok(events) => break events,
            // The server has to notice first.
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    };
    service
        .client
        .create(&CreateBoxRequest::of("idle").name("x"))
        .await
        .unwrap();
    while second.next().await.unwrap().unwrap().state.name.as_deref() != Some("x") {}
    service.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_events_that_leave_make_room_for_others() {
    let service = Service::with(Limits::default().event_readers(64)).await;
    let token = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
    // Several times as many as there may be, and nothing is told to them.
    for _ in 0..200 {
        for client in [&service.client, &bearer] {
            drop(client.events().await.unwrap());
        }
    }
    service.end().await;
}

#[tokio::test]
async fn a_reader_of_events_who_comes_waits_for_one_who_leaves() {
    let service = Service::with(Limits::default().event_readers(1)).await;
    let deadline = std::time::Instant::now() + DEADLINE;
    // The wait is short: this thread may be late.
    loop {
        let mut first = service.saying(EVENTS).await;
        let is_in = is_let_in(&mut first).await;
        let mut second = service.saying(EVENTS).await;
        // The server has seen both.
        service.client.me().await.unwrap();
        drop(first);
        // Where the first was not let in, there was nobody to wait for.
        if is_let_in(&mut second).await && is_in {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "nobody is waited for");
    }
    service.end().await;
}

/// Whether the answer that begins is a good one.
async fn is_let_in(stream: &mut UnixStream) -> bool {
    let mut status = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut status).await.unwrap();
    &status == b"HTTP/1.1 200"
}

#[tokio::test]
async fn a_reader_of_events_that_says_no_more_has_left() {
    let service = Service::with(Limits::default().event_readers(1)).await;
    let mut reader = service.saying(EVENTS).await;
    reader.readable().await.unwrap();
    reader.shutdown().await.unwrap();
    let answer = heard(&mut reader).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    drop(service.client.events().await.unwrap());
    service.end().await;
}

#[tokio::test]
async fn readers_of_events_that_read_none_make_room_for_others() {
    let limits = Limits::default()
        .event_readers(1)
        .write_timeout(Duration::from_millis(100));
    let service = Service::with(limits).await;
    let stalled = service.saying(EVENTS).await;
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
    let deadline = std::time::Instant::now() + DEADLINE;
    while let Err(refused) = service.client.events().await {
        assert_eq!(refused.code(), Some(ErrorCode::ResourceExhausted));
        assert!(std::time::Instant::now() < deadline, "{refused}");
    }
    service.end().await;
}
