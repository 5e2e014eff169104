use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use futures::StreamExt;

use super::*;
use crate::wire::{ErrorCode, StopBoxRequest};

const STREAM_IDLE_TIMEOUT: Duration = Duration::from_millis(50);

/// Starts a server that responds to one request piece by piece, each after a pause that is too long for
/// an event stream, and keeps the connection open.
fn slow_server(pieces: &[impl ToString]) -> Client {
    let pieces: Vec<_> = pieces.iter().map(ToString::to_string).collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = connection.read(&mut request).unwrap();
        for piece in pieces {
            thread::sleep(4 * STREAM_IDLE_TIMEOUT);
            let _ = connection.write_all(piece.as_bytes());
        }
        // Returns when the client closes the connection.
        let _ = connection.read(&mut request);
    });
    let mut client = Client::tcp(&url, None).unwrap();
    client.stream_idle_timeout = STREAM_IDLE_TIMEOUT;
    client
}

#[tokio::test]
async fn a_response_may_take_longer_than_a_stream_may_be_idle() {
    let client = slow_server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "{}"]);
    assert_eq!(client.metrics().await.unwrap(), Default::default());
}

#[tokio::test]
async fn the_grace_period_of_a_stop_extends_the_response_timeout() {
    let client = slow_server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "{}"]);
    let client = client.response_timeout(STREAM_IDLE_TIMEOUT);
    let body = StopBoxRequest::default().timeout_seconds(60.0);
    let error = client.stop("x", &body).await.unwrap_err();
    // `{}` is not a box, but it arrives after the response timeout.
    assert!(
        matches!(error, ClientError::UnexpectedResponse { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_response_timeout_can_be_set() {
    let client = slow_server(&[""]).response_timeout(STREAM_IDLE_TIMEOUT);
    let result = timeout(RESPONSE_TIMEOUT / 2, client.metrics()).await;
    let error = result.expect("the default timeout applies").unwrap_err();
    assert!(
        matches!(error, ClientError::Interrupted { .. }),
        "{error:?}"
    );
    let client = slow_server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "{}"]);
    client
        .response_timeout(Duration::MAX)
        .metrics()
        .await
        .unwrap();
}

#[tokio::test]
async fn the_status_of_a_response_to_head_determines_the_error() {
    for (status, code) in [
        ("401 Unauthorized", ErrorCode::Unauthenticated),
        ("408 Request Timeout", ErrorCode::Timeout),
        ("503 Service Unavailable", ErrorCode::Stopped),
    ] {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: 20\r\n\r\n");
        let client = slow_server(&[head]);
        let error = client.exists("x").await.unwrap_err();
        assert_eq!(error.code(), Some(code), "{error:?}");
    }
    let client = slow_server(&["HTTP/1.1 502 Bad Gateway\r\n\r\n"]);
    let error = client.exists("x").await.unwrap_err();
    assert!(
        matches!(error, ClientError::UnexpectedResponse { .. }),
        "{error:?}"
    );
}

#[test]
fn the_error_of_an_address_does_not_show_its_secrets() {
    for (url, shown) in [
        ("http://me:secret@host:1", "\"http://…@host:1\""),
        ("http://:secret@host", "\"http://…@host\""),
        ("http://secret@host", "\"http://…@host\""),
        ("http://host/?secret", "\"http://host/…\""),
        ("http://host/#secret", "\"http://host/…\""),
        ("https://me:secret@host", "\"https://…@host\""),
        ("http://me:sec?ret#secret@host", "\"http://…@host\""),
        ("me:secret@host", "\"…@host\""),
    ] {
        let error = Client::tcp(url, None).unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with(shown), "{message}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[tokio::test]
async fn an_idle_stream_ends() {
    let mut client = slow_server(&["HTTP/1.1 200 OK\r\n\r\n: hello\n\n"]);
    let result = client.events().await;
    assert!(matches!(result, Err(ClientError::StreamIdle { .. })));

    client = slow_server(&["HTTP/1.1 200 OK\r\n\r\n: hello\n\n"]);
    client.stream_idle_timeout = 20 * STREAM_IDLE_TIMEOUT;
    let mut events = client.events().await.unwrap();
    let item = events.next().await;
    assert!(matches!(
        item,
        Some(Err(ClientError::StreamIdle { seconds: 1, .. }))
    ));
    assert!(events.next().await.is_none());
}
