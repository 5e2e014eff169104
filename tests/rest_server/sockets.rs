use std::error::Error;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use vmm_rest::{Client, ClientError, ListenError, Listener};

use crate::common::DEADLINE;
use crate::fixture::TestServer;

#[tokio::test]
async fn the_socket_is_private_and_is_removed_with_the_server() {
    let mut service = TestServer::start().await;
    let socket = service.socket();
    let found = fs::metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    service.stop_server().await;
    assert!(!socket.exists());
    let beside: Vec<_> = fs::read_dir(service.home.path())
        .unwrap()
        .flatten()
        .collect();
    let left = beside
        .iter()
        .any(|entry| entry.file_name().to_string_lossy().contains("sock"));
    assert!(!left, "{beside:?}");
    let gone = service.client.me().await.unwrap_err();
    assert!(matches!(gone, ClientError::Unreachable { .. }), "{gone:?}");
    assert!(gone.to_string().contains("api.sock"), "{gone}");
    let causes = std::iter::successors(gone.source(), |cause| (*cause).source());
    let root = causes.last().unwrap().to_string();
    assert!(root.contains("No such file"), "{root}");
    service.shut_down().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_used_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let first = Listener::unix(&path).await.unwrap();
    let second = Listener::unix(&path).await;
    assert!(
        matches!(second, Err(ListenError::InUse { .. })),
        "{second:?}"
    );
    drop(first);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_socket_with_a_full_backlog_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = tokio::net::UnixSocket::new_stream().unwrap();
    socket.bind(&path).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    while let Ok(client) = tokio::net::UnixStream::connect(&path).await {
        waiting.push(client);
    }
    assert!(waiting.len() < 10, "the backlog holds {}", waiting.len());
    let error = tokio::time::timeout(DEADLINE, Listener::unix(&path)).await;
    let error = error
        .expect("the listener waits for the backlog")
        .unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error:?}");
    drop(listener);
}

#[tokio::test]
async fn a_file_that_is_not_a_socket_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes");
    fs::write(&path, "mine").unwrap();
    let error = Listener::unix(&path).await.unwrap_err();
    assert!(matches!(error, ListenError::NoSocket { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let missing = Listener::unix(&dir.path().join("no/such/dir")).await;
    assert!(matches!(missing, Err(ListenError::System { .. })));
}

#[tokio::test]
async fn a_listener_does_not_remove_the_socket_of_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = Listener::unix(&path).await.unwrap();
    fs::remove_file(&path).unwrap();
    let second = Listener::unix(&path).await.unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn invalid_addresses_and_names_are_reported() {
    for url in ["", "boxes", "https://localhost", "unix:///x", "data:x"] {
        let error = Client::tcp(url, None);
        assert!(matches!(error, Err(ClientError::Address { .. })), "{url}");
    }
    let client = Client::tcp("http://127.0.0.1:1/", None).unwrap();
    for name in ["", ".", ".."] {
        let error = client.inspect(name).await;
        assert!(matches!(error, Err(ClientError::Name { .. })), "{name}");
    }
}

#[tokio::test]
async fn a_name_with_a_slash_is_one_path_segment() {
    let service = TestServer::start().await;
    let error = service
        .client
        .inspect("a/../../v1/me?x#y")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("a/../../v1/me?x#y"), "{error}");
    service.shut_down().await;
}

#[tokio::test]
async fn a_socket_path_may_have_107_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let name = |length: usize| "s".repeat(length - dir.path().as_os_str().len() - 1);
    let longest = dir.path().join(name(107));
    let listener = Listener::unix(&longest).await.unwrap();
    tokio::net::UnixStream::connect(&longest).await.unwrap();
    drop(listener);
    let too_long = Listener::unix(&dir.path().join(name(108)))
        .await
        .unwrap_err();
    assert!(
        matches!(too_long, ListenError::System { .. }),
        "{too_long:?}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_client_detects_a_server_that_is_not_vmm_rest() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let other_server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", other_server.local_addr().unwrap());
    let responses = [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
        "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 500\r\nconnection: close\r\n\r\nhello",
    ];
    let serve = tokio::spawn(async move {
        for response in responses {
            let (mut stream, _) = other_server.accept().await.unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
    let client = Client::tcp(&url, None).unwrap();
    for status in [200, 502] {
        match client.metrics().await.unwrap_err() {
            ClientError::UnexpectedResponse { status: found, .. } => assert_eq!(found, status),
            other => panic!("{other:?}"),
        }
    }
    let torn = client.metrics().await.unwrap_err();
    assert!(matches!(torn, ClientError::Interrupted { .. }), "{torn:?}");
    serve.await.unwrap();
}
