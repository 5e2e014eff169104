//! A server over a runtime of its own.

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

/// Needs no token.
pub const QUESTION: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

/// Longer than any test waits.
pub const NEVER: Duration = Duration::from_secs(3600);

/// Has to be [ended](Self::end).
pub struct Service {
    pub runtime: VmmRuntime,
    pub client: Client,
    pub http: reqwest::Client,
    pub shutdown: CancellationToken,
    /// Of the TCP listener, whose token is [`TOKEN`].
    pub url: String,
    /// `None` when it has ended.
    server: Option<JoinHandle<()>>,
    pub home: PerTestBoxHome,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Service {
    pub async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        Self::of(ImageTable::builtin(), limits).await
    }

    pub async fn of(images: ImageTable, limits: Limits) -> Self {
        let home = PerTestBoxHome::new();
        let runtime = boxes::open(&home).await;
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

    pub async fn started(&self, request: CreateBoxRequest) -> BoxResponse {
        let made = self.client.create(&request).await.unwrap();
        self.client.start(&made.box_id).await.unwrap()
    }

    /// The box as soon as it is told to be so.
    pub async fn until(&self, id: &str, is_so: impl Fn(&BoxResponse) -> bool) -> BoxResponse {
        let told = async {
            loop {
                let found = self.client.inspect(id).await.unwrap();
                if is_so(&found) {
                    break found;
                }
                pause().await;
            }
        };
        let told = tokio::time::timeout(DEADLINE, told).await;
        told.expect("the box does not change as it should")
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

    /// A connection that says just this.
    pub async fn saying(&self, text: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// Ends the server only.
    pub async fn end_server(&mut self) {
        self.shutdown.cancel();
        if let Some(server) = self.server.take() {
            let ended = tokio::time::timeout(DEADLINE, server);
            ended.await.expect("the server goes on").unwrap();
        }
    }

    pub async fn end(mut self) {
        self.end_server().await;
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
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }

    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// A request to stop, as it is sent.
pub fn stop(id: &str, timeout_seconds: f64) -> String {
    let body = format!(r#"{{"timeout_seconds": {timeout_seconds}}}"#);
    let length = body.len();
    format!(
        "POST /v1/boxes/{id}/stop HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// All that the server says until it hangs up.
pub async fn heard(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut text));
    // One that hangs up on unread bytes resets the connection.
    let _ = read.await.expect("the server does not hang up");
    String::from_utf8(text).unwrap()
}

/// A payload that says when it is up, and when it is asked to stop, which it does not; only when it
/// is [told to go](boxes::go).
pub const DEAF: &str = "trap 'touch $VMM_BOX_DIR/asked' TERM; touch $VMM_BOX_DIR/up; \
                        until rm $VMM_BOX_DIR/go 2>/dev/null; do sleep 0.01; done";

pub fn deaf() -> CreateBoxRequest {
    CreateBoxRequest::of("idle").cmd(["sh", "-c", DEAF])
}
