use reqwest::{Client, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use vmm_rest::wire::{ErrorCode, PrincipalType};
use vmm_rest::{BearerToken, Limits, ListenError, Listener};

use crate::common::DEADLINE;
use crate::fixture::{NEVER, Reply, TOKEN, TestServer};

const GUARDED: [&str; 6] = [
    "/v1/me",
    "/v1/boxes",
    "/v1/metrics",
    "/v1/openapi.json",
    "/metrics",
    "/readyz",
];
const OPEN: [&str; 2] = ["/v1/config", "/healthz"];

async fn get(url: &str, path: &str, authorization: Option<&str>) -> Reply {
    let mut request = Client::new().get(format!("{url}{path}"));
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    Reply::of(request).await
}

#[tokio::test]
async fn tcp_requests_need_the_bearer_token() {
    let service = TestServer::start().await;
    let url = &service.url;
    let wrong = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(format!("Bearer {}", &TOKEN[1..])),
        Some(format!("Bearer {TOKEN}x")),
        Some(format!("Bearer {}", TOKEN.to_uppercase())),
        Some(format!("Basic {TOKEN}")),
        Some(TOKEN.to_owned()),
    ];
    for path in GUARDED {
        for value in &wrong {
            let reply = get(url, path, value.as_deref()).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (401, "unauthenticated"),
                "{value:?}"
            );
            assert_eq!(reply.json()["error"]["type"], "AuthError");
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
            assert!(!reply.text.contains(TOKEN));
        }
        for right in [format!("Bearer {TOKEN}"), format!("bearer  {TOKEN}")] {
            assert_eq!(get(url, path, Some(&right)).await.status, 200, "{path}");
        }
    }
    for path in OPEN {
        assert_eq!(get(url, path, None).await.status, 200, "{path}");
    }
    let unknown = get(url, "/v1/config/..%2fme", None).await;
    assert_eq!(unknown.status, 401);
    service.shut_down().await;
}

#[tokio::test]
async fn a_token_identifies_a_service_account_and_the_socket_the_owner() {
    let service = TestServer::start().await;
    let token = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
    let me = bearer.me().await.unwrap();
    assert_eq!(me.principal_type, PrincipalType::ServiceAccount);
    let me = service.client.me().await.unwrap();
    assert_eq!(
        (me.principal_type, me.path_prefix),
        (PrincipalType::User, None)
    );
    let unauthenticated = vmm_rest::Client::tcp(&service.url, None).unwrap();
    let error = unauthenticated.me().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unauthenticated));
    service.shut_down().await;
}

#[tokio::test]
async fn listening_beyond_loopback_needs_a_token() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let error = Listener::tcp(address.parse().unwrap(), None)
            .await
            .unwrap_err();
        assert!(matches!(error, ListenError::NoToken { .. }), "{error:?}");
        assert!(error.to_string().contains("token"));
    }
    let inherited = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let error = Listener::from_tcp(inherited, None);
    assert!(matches!(error, Err(ListenError::NoToken { .. })));
    let token = BearerToken::new(TOKEN).unwrap();
    Listener::tcp("0.0.0.0:0".parse().unwrap(), Some(token))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_loopback_listener_without_a_token_serves_only_open_paths() {
    let mut service = TestServer::start().await;
    service.stop_server().await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), None)
        .await
        .unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = vmm_rest::Server::new(
        &service.runtime,
        vmm_rest::ImageTable::builtin(),
        vmm_rest::Limits::default(),
        &shutdown,
    );
    let serving = tokio::spawn(server.serve([listener]));
    for path in GUARDED {
        let reply = get(&url, path, Some(&format!("Bearer {TOKEN}"))).await;
        assert_eq!(reply.status, 401, "{path}");
        assert!(reply.message().contains("no token"), "{}", reply.message());
    }
    for path in OPEN {
        assert_eq!(get(&url, path, None).await.status, 200, "{path}");
    }
    shutdown.cancel();
    serving.await.unwrap();
    service.shut_down().await;
}

#[tokio::test]
async fn the_socket_needs_no_token() {
    let service = TestServer::start().await;
    for path in GUARDED.into_iter().chain(OPEN) {
        assert_eq!(
            service.send(Method::GET, path, "").await.status,
            200,
            "{path}"
        );
    }
    service.shut_down().await;
}

#[tokio::test]
async fn the_bodies_of_unauthenticated_requests_are_not_read() {
    let limits = Limits::default().body_timeout(NEVER);
    let service = TestServer::with_limits(limits).await;
    let address = service.url.strip_prefix("http://").unwrap();
    for (line, status) in [
        ("POST /v1/boxes", 401),
        ("POST /healthz", 413),
        ("GET /healthz", 413),
        ("GET /v1/config", 413),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut response = vec![0; "HTTP/1.1 200".len()];
        let read = timeout(DEADLINE, stream.read_exact(&mut response));
        read.await.expect("the server waits for the body").unwrap();
        let response = String::from_utf8(response).unwrap();
        assert_eq!(response, format!("HTTP/1.1 {status}"), "{line}");
    }
    service.shut_down().await;
}
