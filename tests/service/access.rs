use reqwest::{Client, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use vmm_rest::wire::{ErrorCode, PrincipalType};
use vmm_rest::{BearerToken, Limits, ListenError, Listener};

use crate::common::DEADLINE;
use crate::fixture::{NEVER, Reply, Service, TOKEN};

const GUARDED: [&str; 6] = [
    "/v1/me",
    "/v1/boxes",
    "/v1/metrics",
    "/v1/openapi.json",
    "/metrics",
    "/readyz",
];
const OPEN: [&str; 2] = ["/v1/config", "/healthz"];

async fn ask(url: &str, path: &str, authorization: Option<&str>) -> Reply {
    let mut request = Client::new().get(format!("{url}{path}"));
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    Reply::of(request).await
}

#[tokio::test]
async fn over_tcp_only_the_bearer_of_the_token_gets_in() {
    let service = Service::start().await;
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
            let reply = ask(url, path, value.as_deref()).await;
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
            assert_eq!(ask(url, path, Some(&right)).await.status, 200, "{path}");
        }
    }
    for path in OPEN {
        assert_eq!(ask(url, path, None).await.status, 200, "{path}");
    }
    let nowhere = ask(url, "/v1/config/..%2fme", None).await;
    assert_eq!(nowhere.status, 401);
    service.end().await;
}

#[tokio::test]
async fn a_client_with_the_token_is_a_service_and_one_at_the_socket_is_the_owner() {
    let service = Service::start().await;
    let token = BearerToken::new(TOKEN).unwrap();
    let bearer = vmm_rest::Client::tcp(&service.url, Some(token)).unwrap();
    let me = bearer.me().await.unwrap();
    assert_eq!(me.principal_type, PrincipalType::ServiceAccount);
    let me = service.client.me().await.unwrap();
    assert_eq!(
        (me.principal_type, me.path_prefix),
        (PrincipalType::User, None)
    );
    let stranger = vmm_rest::Client::tcp(&service.url, None).unwrap();
    let refused = stranger.me().await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Unauthenticated));
    service.end().await;
}

#[tokio::test]
async fn without_a_token_other_hosts_are_refused_before_anybody_listens() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let refused = Listener::tcp(address.parse().unwrap(), None)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, ListenError::NoToken { .. }),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("token"));
    }
    let inherited = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let refused = Listener::from_tcp(inherited, None);
    assert!(matches!(refused, Err(ListenError::NoToken { .. })));
    let token = BearerToken::new(TOKEN).unwrap();
    Listener::tcp("0.0.0.0:0".parse().unwrap(), Some(token))
        .await
        .unwrap();
}

#[tokio::test]
async fn on_a_loopback_address_without_a_token_only_what_is_open_is_served() {
    let mut service = Service::start().await;
    service.end_server().await;
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
        let reply = ask(&url, path, Some(&format!("Bearer {TOKEN}"))).await;
        assert_eq!(reply.status, 401, "{path}");
        assert!(reply.message().contains("no token"), "{}", reply.message());
    }
    for path in OPEN {
        assert_eq!(ask(&url, path, None).await.status, 200, "{path}");
    }
    shutdown.cancel();
    serving.await.unwrap();
    service.end().await;
}

#[tokio::test]
async fn at_the_socket_no_token_is_asked_for() {
    let service = Service::start().await;
    for path in GUARDED.into_iter().chain(OPEN) {
        assert_eq!(
            service.send(Method::GET, path, "").await.status,
            200,
            "{path}"
        );
    }
    service.end().await;
}

#[tokio::test]
async fn nothing_that_a_stranger_says_is_taken_in() {
    let limits = Limits::default().body_timeout(NEVER);
    let service = Service::with(limits).await;
    let address = service.url.strip_prefix("http://").unwrap();
    for (line, status) in [
        ("POST /v1/boxes", 401),
        ("POST /healthz", 413),
        ("GET /healthz", 413),
        ("GET /v1/config", 413),
    ] {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{{");
        stranger.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; "HTTP/1.1 200".len()];
        let read = timeout(DEADLINE, stranger.read_exact(&mut answer));
        read.await.expect("it waits for the body").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}"), "{line}");
    }
    service.end().await;
}
