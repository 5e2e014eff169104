//! The API mounted in another axum application.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use axum::routing::get;
use futures::StreamExt;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmm_rest::wire::{CreateBoxRequest, ErrorCode, PrincipalType};
use vmm_rest::{BearerToken, Client, ImageTable, Limits, RouterAccess, Server};
use vmm_runtime::{RuntimeOptions, ShimProgram, VmmRuntime};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// An application with the API under `/vmm`.
struct Application {
    url: String,
    http: reqwest::Client,
    runtime: VmmRuntime,
    server: Server,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    _home: TempDir,
}

impl Application {
    async fn start(access: RouterAccess) -> Self {
        let home = tempfile::tempdir().unwrap();
        // No test starts a box, so any program will do.
        let options =
            RuntimeOptions::new(home.path()).shim_program(ShimProgram::at("/bin/true").unwrap());
        let runtime = VmmRuntime::open(options).await.unwrap();
        let shutdown = CancellationToken::new();
        let server = Server::new(
            &runtime,
            ImageTable::builtin(),
            Limits::default(),
            &shutdown,
        );
        let router = axum::Router::new()
            .route("/", get(async || "the application"))
            .nest("/vmm", server.router(access));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let closing = shutdown.clone().cancelled_owned();
        let task = tokio::spawn(async {
            axum::serve(listener, router)
                .with_graceful_shutdown(closing)
                .await
                .unwrap();
        });
        Self {
            url,
            http: reqwest::Client::new(),
            runtime,
            server,
            shutdown,
            task,
            _home: home,
        }
    }

    fn client(&self, token: Option<&str>) -> Client {
        let token = token.map(|token| BearerToken::new(token).unwrap());
        Client::tcp(&format!("{}/vmm", self.url), token).unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let request = self.http.get(format!("{}{path}", self.url));
        request.send().await.unwrap()
    }

    async fn shut_down(self) {
        self.shutdown.cancel();
        timeout(TEST_TIMEOUT, self.task).await.unwrap().unwrap();
        timeout(TEST_TIMEOUT, self.server.serve([])).await.unwrap();
        self.runtime.shutdown(TEST_TIMEOUT).await;
    }
}

fn token_access() -> RouterAccess {
    RouterAccess::Token(BearerToken::new(TOKEN).unwrap())
}

#[tokio::test]
async fn a_client_uses_the_api_under_the_prefix() {
    let app = Application::start(token_access()).await;
    let client = app.client(Some(TOKEN));
    let bx = client
        .create(&CreateBoxRequest::of("idle").name("nap"))
        .await
        .unwrap();
    assert_eq!(client.inspect("nap").await.unwrap(), bx);
    assert_eq!(client.all_boxes().await.unwrap(), [bx]);
    assert!(client.readiness().await.unwrap().ready);
    assert!(client.box_metrics("nap").await.is_ok());
    client.remove("nap", false).await.unwrap();
    assert!(!client.exists("nap").await.unwrap());
    assert_eq!(app.get("/").await.text().await.unwrap(), "the application");
    app.shut_down().await;
}

#[tokio::test]
async fn the_location_of_a_new_box_has_the_prefix() {
    let app = Application::start(RouterAccess::Application).await;
    let request = app.http.post(format!("{}/vmm/v1/boxes", app.url));
    let request = request.header("content-type", "application/json");
    let response = request.body("{}").send().await.unwrap();
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with("/vmm/v1/boxes/"), "{location}");
    assert_eq!(app.get(&location).await.status(), 200);
    app.shut_down().await;
}

#[tokio::test]
async fn the_router_requires_its_token_except_for_public_paths() {
    let app = Application::start(token_access()).await;
    for path in [
        "/vmm/v1/me",
        "/vmm/v1/boxes",
        "/vmm/metrics",
        "/vmm/nowhere",
    ] {
        let response = app.get(path).await;
        assert_eq!(response.status(), 401, "{path}");
        // The application manages the connections.
        assert!(!response.headers().contains_key("connection"), "{path}");
    }
    for path in ["/vmm/v1/config", "/vmm/healthz", "/"] {
        assert_eq!(app.get(path).await.status(), 200, "{path}");
    }
    let wrong = app.client(Some(&TOKEN[1..])).me().await.unwrap_err();
    assert_eq!(wrong.code(), Some(ErrorCode::Unauthenticated));
    let me = app.client(Some(TOKEN)).me().await.unwrap();
    assert_eq!(me.principal_type, PrincipalType::ServiceAccount);
    app.shut_down().await;
}

#[tokio::test]
async fn with_application_access_the_router_accepts_every_request() {
    let app = Application::start(RouterAccess::Application).await;
    let me = app.client(None).me().await.unwrap();
    assert_eq!(me.sub, "application");
    app.shut_down().await;
}

#[tokio::test]
async fn an_unknown_path_below_the_prefix_gets_the_error_model() {
    let app = Application::start(RouterAccess::Application).await;
    let response = app.get("/vmm/v1/nowhere").await;
    assert_eq!(response.status(), 404);
    let error: serde_json::Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "not_found");
    let outside = app.get("/nowhere").await;
    assert_eq!(
        (outside.status().as_u16(), outside.text().await.unwrap()),
        (404, String::new())
    );
    app.shut_down().await;
}

#[tokio::test]
async fn a_shutdown_ends_event_streams() {
    let app = Application::start(RouterAccess::Application).await;
    let client = app.client(None);
    let mut events = client.events().await.unwrap();
    client
        .create(&CreateBoxRequest::of("idle").name("nap"))
        .await
        .unwrap();
    let event = timeout(TEST_TIMEOUT, events.next()).await.unwrap();
    let event = event.unwrap().unwrap();
    assert_eq!(event.state.name.as_deref(), Some("nap"));
    app.shutdown.cancel();
    assert!(
        timeout(TEST_TIMEOUT, events.next())
            .await
            .unwrap()
            .is_none()
    );
    app.shut_down().await;
}
