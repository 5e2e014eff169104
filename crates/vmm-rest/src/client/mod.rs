//! The client's side.

mod answer;
mod error;
mod events;
mod sse;

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode, Url, redirect};
use tokio::time::timeout;

use answer::Answer;
pub use error::ClientError;
pub use events::BoxEvents;

use crate::BearerToken;
use crate::wire::{
    BoxMetricsResponse, BoxResponse, CreateBoxRequest, ListBoxesQuery, ListBoxesResponse,
    Principal, Readiness, RuntimeMetricsResponse, ServerConfig, StopBoxRequest,
};

/// Drives a server, over its Unix socket or TCP. Clones share their connections, which are kept for
/// 5 s when they are idle: a server whose [`Limits::head_timeout`](crate::Limits::head_timeout) is
/// shorter hangs up on them, which the request after that may see as [`ClientError::Interrupted`].
///
/// # Errors
///
/// Every method: [`ClientError::Unreachable`] if nothing has been sent, [`ClientError::Interrupted`] if it
/// may have been, [`ClientError::Refused`] if the server says no, and [`ClientError::UnexpectedResponse`] if it
/// is no such server. Those that take the name or id of a box: [`ClientError::Name`], before
/// anything is sent. [`events`](Self::events): [`ClientError::StreamIdle`].
///
/// # Cancel safety
///
/// Of every method: dropping the future drops the answer; a request that the server has got may be
/// done nevertheless.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
/// use vmm_rest::Client;
/// use vmm_rest::wire::CreateBoxRequest;
///
/// let client = Client::unix(Path::new("/run/boxes/api.sock"))?;
/// let made = client.create(&CreateBoxRequest::of("idle").name("nap")).await?;
/// let running = client.start(&made.box_id).await?;
/// println!("{} runs in the shim {:?}", running.box_id, running.pid);
/// client.remove("nap", true).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<BearerToken>,
    /// For people.
    at: String,
    answer_timeout: Duration,
    /// How long it may take until something of an event stream is heard.
    silence: Duration,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a server of the default limits lets any request take, beside the time that a stop
/// gives the box.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// A server says something several times a minute, if only that it is there.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Shorter than a server of the default limits keeps an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

impl Client {
    /// Of the server at this Unix socket. Does not connect yet.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if the system's configuration cannot be read.
    pub fn unix(socket: &Path) -> Result<Self, ClientError> {
        let at = socket.display().to_string();
        let http = builder().unix_socket(socket);
        Self::new(http, "http://localhost", None, at)
    }

    /// Of the server at this address, `http://HOST:PORT`. Does not connect yet.
    ///
    /// The connection is not encrypted, and goes through no proxy: across a network, put a tunnel
    /// around it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`], also for an address with a password or a query in it: errors show
    /// the address.
    pub fn tcp(url: &str, token: Option<BearerToken>) -> Result<Self, ClientError> {
        Self::new(builder(), url, token, url.to_owned())
    }

    /// How long an answer may take before it is [`ClientError::Interrupted`], beside the time that a stop
    /// gives the box; 120 s by default. For a server whose
    /// [`Limits::request_timeout`](crate::Limits::request_timeout) is longer.
    #[must_use]
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    fn new(
        http: reqwest::ClientBuilder,
        url: &str,
        token: Option<BearerToken>,
        at: String,
    ) -> Result<Self, ClientError> {
        let refused = |reason: String| ClientError::Address {
            url: without_secrets(&at),
            reason,
        };
        let base = Url::parse(url).map_err(|error| refused(error.to_string()))?;
        if base.scheme() != "http" || base.cannot_be_a_base() {
            return Err(refused("it is no http address".to_owned()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            let reason = "it has a user or a password in it, and the server knows tokens only";
            return Err(refused(reason.to_owned()));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(refused("it goes on after its path".to_owned()));
        }
        let http = http.build().map_err(|error| refused(error.to_string()))?;
        Ok(Self {
            http,
            base,
            token,
            at,
            answer_timeout: ANSWER_TIMEOUT,
            silence: SILENCE_TIMEOUT,
        })
    }

    /// What the server can do.
    pub async fn config(&self) -> Result<ServerConfig, ClientError> {
        self.get(["v1", "config"]).await
    }

    /// Who the server takes this client for.
    pub async fn me(&self) -> Result<Principal, ClientError> {
        self.get(["v1", "me"]).await
    }

    /// A page of boxes, in the order of their creation.
    pub async fn boxes(&self, query: &ListBoxesQuery) -> Result<ListBoxesResponse, ClientError> {
        let mut url = self.url(["v1", "boxes"])?;
        let pairs = [
            ("pageSize", query.page_size.map(|size| size.to_string())),
            ("pageToken", query.page_token.clone()),
            ("status", query.status.clone()),
        ];
        for (name, value) in pairs {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, &value);
            }
        }
        let request = self.authorized(self.http.get(url));
        self.send(request).await?.check().await?.json().await
    }

    /// All boxes, in the order of their creation. One that is created meanwhile may be among them.
    pub async fn all_boxes(&self) -> Result<Vec<BoxResponse>, ClientError> {
        let mut query = ListBoxesQuery::default().page_size(1000);
        let mut boxes = Vec::new();
        loop {
            let page = self.boxes(&query).await?;
            boxes.extend(page.boxes);
            match page.next_page_token {
                Some(token) => query = query.page_token(token),
                None => return Ok(boxes),
            }
        }
    }

    /// A box, by its id or name.
    pub async fn inspect(&self, id: &str) -> Result<BoxResponse, ClientError> {
        self.get(["v1", "boxes", id]).await
    }

    /// Whether there is such a box.
    pub async fn exists(&self, id: &str) -> Result<bool, ClientError> {
        let request = self.request(Method::HEAD, ["v1", "boxes", id])?;
        let answer = self.send(request).await?;
        match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer.refusal_without_body()),
        }
    }

    /// Makes a box, without starting it.
    pub async fn create(&self, request: &CreateBoxRequest) -> Result<BoxResponse, ClientError> {
        let sent = self.request(Method::POST, ["v1", "boxes"])?.json(request);
        self.send(sent).await?.check().await?.json().await
    }

    /// [`create`](Self::create) that can be called again with the same key, a UUID, after an error,
    /// and yet makes one box only.
    pub async fn create_once(
        &self,
        request: &CreateBoxRequest,
        key: &str,
    ) -> Result<BoxResponse, ClientError> {
        let sent = self.request(Method::POST, ["v1", "boxes"])?;
        let sent = sent.header("Idempotency-Key", key).json(request);
        self.send(sent).await?.check().await?.json().await
    }

    /// Starts a box; returns when its payload is ready, at once if it runs already.
    pub async fn start(&self, id: &str) -> Result<BoxResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes", id, "start"])?;
        self.send(request).await?.check().await?.json().await
    }

    /// Stops a box; returns when it has ended, at once if it does not run. Waits for as long as the
    /// request gives the box, too.
    pub async fn stop(
        &self,
        id: &str,
        request: &StopBoxRequest,
    ) -> Result<BoxResponse, ClientError> {
        let sent = self.request(Method::POST, ["v1", "boxes", id, "stop"])?;
        // The server refuses what is no grace.
        let grace = request.grace().unwrap_or_default();
        let sent = sent
            .timeout(self.answer_timeout.saturating_add(grace))
            .json(request);
        self.send(sent).await?.check().await?.json().await
    }

    /// Removes a box; one that runs only with `force`.
    pub async fn remove(&self, id: &str, force: bool) -> Result<(), ClientError> {
        let mut url = self.url(["v1", "boxes", id])?;
        if force {
            url.query_pairs_mut().append_pair("force", "true");
        }
        let request = self.authorized(self.http.delete(url));
        self.send(request).await?.check().await?;
        Ok(())
    }

    /// What the runtime has done and does.
    pub async fn metrics(&self) -> Result<RuntimeMetricsResponse, ClientError> {
        self.get(["v1", "metrics"]).await
    }

    /// What a box uses.
    pub async fn box_metrics(&self, id: &str) -> Result<BoxMetricsResponse, ClientError> {
        self.get(["v1", "boxes", id, "metrics"]).await
    }

    /// The numbers of the runtime as OpenMetrics text.
    pub async fn exposition(&self) -> Result<String, ClientError> {
        let request = self.request(Method::GET, ["metrics"])?;
        self.send(request).await?.check().await?.text().await
    }

    /// Whether the server can run boxes, and why not.
    pub async fn readiness(&self) -> Result<Readiness, ClientError> {
        let request = self.request(Method::GET, ["readyz"])?;
        let answer = self.send(request).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => answer.json().await,
            _ => Err(answer.refusal().await),
        }
    }

    /// Every change of every box from now on.
    pub async fn events(&self) -> Result<BoxEvents, ClientError> {
        let request = self.request(Method::GET, ["v1", "events"])?;
        // It has no end that could be late.
        let request = request.timeout(Duration::MAX);
        let begun = async { self.send(request).await?.check().await };
        let answer = timeout(self.silence, begun)
            .await
            .map_err(|_| ClientError::silent(&self.at, self.silence))??;
        Ok(BoxEvents::new(answer, self.silence))
    }

    async fn get<T: serde::de::DeserializeOwned, const N: usize>(
        &self,
        path: [&str; N],
    ) -> Result<T, ClientError> {
        let request = self.request(Method::GET, path)?;
        self.send(request).await?.check().await?.json().await
    }

    fn request<const N: usize>(
        &self,
        method: Method,
        path: [&str; N],
    ) -> Result<RequestBuilder, ClientError> {
        let url = self.url(path)?;
        Ok(self.authorized(self.http.request(method, url)))
    }

    fn url<const N: usize>(&self, path: [&str; N]) -> Result<Url, ClientError> {
        // These would lead elsewhere.
        if let Some(wanted) = path
            .iter()
            .find(|segment| matches!(**segment, "" | "." | ".."))
        {
            let wanted = (*wanted).to_owned();
            return Err(ClientError::Name { wanted });
        }
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        Ok(url)
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.timeout(self.answer_timeout);
        match &self.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, ClientError> {
        let at = self.at.clone();
        match request.send().await {
            Ok(response) => Ok(Answer { at, response }),
            Err(source) if source.is_connect() => Err(ClientError::Unreachable { at, source }),
            Err(source) => Err(ClientError::Interrupted { at, source }),
        }
    }
}

/// Of an address as it was given, which may be malformed.
fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_at(url.find("://").map_or(0, |at| at + "://".len()));
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("…@", rest),
        None => ("", rest),
    };
    match rest.split_once(['?', '#']) {
        Some((path, _)) => format!("{scheme}{user}{path}…"),
        None => format!("{scheme}{user}{rest}"),
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!(
            env!("CARGO_PKG_NAME"),
            "/",
            env!("CARGO_PKG_VERSION")
        ))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .redirect(redirect::Policy::none())
        // The token is for the server, not for whoever is on the way.
        .no_proxy()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use futures::StreamExt;

    use super::*;
    use crate::wire::ErrorCode;

    const SILENCE: Duration = Duration::from_millis(50);

    /// Answers one request, piece by piece, each after a silence that is too long for events, and
    /// keeps the connection.
    fn slow_server(pieces: &[impl ToString]) -> Client {
        let pieces: Vec<_> = pieces.iter().map(ToString::to_string).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = connection.read(&mut request).unwrap();
            for piece in pieces {
                thread::sleep(4 * SILENCE);
                let _ = connection.write_all(piece.as_bytes());
            }
            // Until the client hangs up.
            let _ = connection.read(&mut request);
        });
        let mut client = Client::tcp(&url, None).unwrap();
        client.silence = SILENCE;
        client
    }

    #[tokio::test]
    async fn an_answer_may_take_longer_than_a_stream_may_be_silent() {
        let client = slow_server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "{}"]);
        assert_eq!(client.metrics().await.unwrap(), Default::default());
    }

    #[tokio::test]
    async fn a_stop_may_take_as_long_as_it_gives_the_box_on_top() {
        let client = slow_server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "{}"]);
        let client = client.answer_timeout(SILENCE);
        let patience = StopBoxRequest::default().timeout_seconds(60.0);
        let answer = client.stop("x", &patience).await.unwrap_err();
        // No box, but an answer, after a time that is too long for others.
        assert!(
            matches!(answer, ClientError::UnexpectedResponse { .. }),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn an_answer_may_take_as_long_as_the_client_is_told() {
        let client = slow_server(&[""]).answer_timeout(SILENCE);
        let late = timeout(ANSWER_TIMEOUT / 2, client.metrics()).await;
        let late = late.expect("it waits longer").unwrap_err();
        assert!(matches!(late, ClientError::Interrupted { .. }), "{late:?}");
        let client = slow_server(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "{}"]);
        client
            .answer_timeout(Duration::MAX)
            .metrics()
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_refusal_of_a_head_is_told_by_its_status() {
        for (status, code) in [
            ("401 Unauthorized", ErrorCode::Unauthenticated),
            ("408 Request Timeout", ErrorCode::Timeout),
            ("503 Service Unavailable", ErrorCode::Stopped),
        ] {
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: 20\r\n\r\n");
            let client = slow_server(&[head]);
            let refused = client.exists("x").await.unwrap_err();
            assert_eq!(refused.code(), Some(code), "{refused:?}");
        }
        let client = slow_server(&["HTTP/1.1 502 Bad Gateway\r\n\r\n"]);
        let strange = client.exists("x").await.unwrap_err();
        assert!(
            matches!(strange, ClientError::UnexpectedResponse { .. }),
            "{strange:?}"
        );
    }

    #[test]
    fn an_address_that_would_show_a_secret_is_refused_without_it() {
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
            let refused = Client::tcp(url, None).unwrap_err();
            assert!(
                matches!(refused, ClientError::Address { .. }),
                "{refused:?}"
            );
            let told = refused.to_string();
            assert!(told.starts_with(shown), "{told}");
            assert!(!format!("{refused:?}").contains("secret"), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_falls_silent_is_over() {
        let mut client = slow_server(&["HTTP/1.1 200 OK\r\n\r\n: hello\n\n"]);
        let unanswered = client.events().await;
        assert!(matches!(unanswered, Err(ClientError::StreamIdle { .. })));

        client = slow_server(&["HTTP/1.1 200 OK\r\n\r\n: hello\n\n"]);
        client.silence = 20 * SILENCE;
        let mut events = client.events().await.unwrap();
        let heard = events.next().await;
        assert!(matches!(
            heard,
            Some(Err(ClientError::StreamIdle { seconds: 1, .. }))
        ));
        assert!(events.next().await.is_none());
    }
}
