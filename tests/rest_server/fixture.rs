//! A server over a VMM runtime of its own.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vmm_rest::wire::{BoxResponse, CreateBoxRequest};
use vmm_rest::{BearerToken, Client, ImageTable, Limits, Listener, Server};
use vmm_runtime::VmmRuntime;
use vmm_runtime::testing::PerTestBoxHome;

use crate::common::{DEADLINE, boxes, pause};

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A request that needs no token.
pub const HEALTH_REQUEST: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

/// Longer than any test runs.
pub const NEVER: Duration = Duration::from_secs(3600);

/// A server, its VMM runtime, and clients. Every test ends it with [`shut_down`](Self::shut_down).
pub struct TestServer {
    pub runtime: VmmRuntime,
    pub client: Client,
    pub http: reqwest::Client,
    pub shutdown: CancellationToken,
    /// The URL of the TCP listener, whose token is [`TOKEN`].
    pub url: String,
    /// The task that serves; `None` after [`stop_server`](Self::stop_server).
    server: Option<JoinHandle<()>>,
    pub home: PerTestBoxHome,
}

/// A response as received.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub async fn with_limits(limits: Limits) -> Self {
        Self::with_images(ImageTable::builtin(), limits).await
    }

    pub async fn with_images(images: ImageTable, limits: Limits) -> Self {
        let home = PerTestBoxHome::new();
        let runtime = boxes::open_runtime(&home).await;
        let shutdown = CancellationToken::new();
        let socket = home.path().join("api.sock");
        let token = BearerToken::new(TOKEN).unwrap();
        let tcp = Listener::tcp("127.0.0.1:0".parse().unwrap(), Some(token));
        let tcp = tcp.await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let listeners = [Listener::unix(&socket).await.unwrap(), tcp];
        let server = Server::new(&runtime, images, limits, &shutdown);
        let http = reqwest::Client::builder().unix_socket(socket.as_path());
        Self {
            client: Client::unix(&socket).unwrap(),
            http: http.build().unwrap(),
            server: Some(tokio::spawn(server.serve(listeners))),
            runtime,
            shutdown,
            url,
            home,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("api.sock")
    }

    /// Creates and starts a box.
    pub async fn start_box(&self, request: CreateBoxRequest) -> BoxResponse {
        let bx = self.client.create(&request).await.unwrap();
        self.client.start(&bx.box_id).await.unwrap()
    }

    /// Waits until the box satisfies `condition`.
    pub async fn wait_for(
        &self,
        id: &str,
        condition: impl Fn(&BoxResponse) -> bool,
    ) -> BoxResponse {
        let poll = async {
            loop {
                let bx = self.client.inspect(id).await.unwrap();
                if condition(&bx) {
                    break bx;
                }
                pause().await;
            }
        };
        let bx = tokio::time::timeout(DEADLINE, poll).await;
        bx.expect("the box does not reach the expected state")
    }

    pub async fn send(&self, method: Method, target: &str, body: &str) -> Reply {
        self.send_with(method, target, body, &[]).await
    }

    pub async fn send_with(
        &self,
        method: Method,
        target: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> Reply {
        let url = format!("http://localhost{target}");
        let mut request = self.http.request(method, url).body(body.to_owned());
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::of(request).await
    }

    /// Opens a connection and sends `text`.
    pub async fn send_raw(&self, text: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// Stops the server, but not its VMM runtime.
    pub async fn stop_server(&mut self) {
        self.shutdown.cancel();
        if let Some(server) = self.server.take() {
            let result = tokio::time::timeout(DEADLINE, server).await;
            result.expect("the server does not end").unwrap();
        }
    }

    pub async fn shut_down(mut self) {
        self.stop_server().await;
        self.runtime.shutdown(Duration::from_secs(10)).await;
    }
}

impl Reply {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }

    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// Returns the text of a request that stops a box.
pub fn stop_request(id: &str, timeout_seconds: f64) -> String {
    let body = format!(r#"{{"timeout_seconds": {timeout_seconds}}}"#);
    let length = body.len();
    format!(
        "POST /v1/boxes/{id}/stop HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Returns everything that the server sends until it closes the connection.
pub async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut text));
    // The read fails if the server closes with unread bytes, which resets the connection.
    let _ = read
        .await
        .expect("the server does not close the connection");
    String::from_utf8(text).unwrap()
}

/// A payload that ignores SIGTERM. It creates the file `up` when it starts and `asked` at SIGTERM,
/// and exits after [`boxes::send_go`].
pub const IGNORES_STOP: &str = "trap 'touch $VMM_BOX_DIR/asked' TERM; touch $VMM_BOX_DIR/up; \
                        until rm $VMM_BOX_DIR/go 2>/dev/null; do sleep 0.01; done";

pub fn ignores_stop() -> CreateBoxRequest {
    CreateBoxRequest::of("idle").cmd(["sh", "-c", IGNORES_STOP])
}
