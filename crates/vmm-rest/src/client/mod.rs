//! The client.

mod boxes;
mod error;
mod events;
mod executions;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod images;
mod logs;
mod response;
mod sse;

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode, Url, redirect};
use tokio::time::timeout;

pub use error::ClientError;
pub use events::BoxEvents;
pub use executions::{ExecutionEvent, ExecutionEvents, ExecutionInput};
pub use logs::BoxLogs;
use response::ServerResponse;

use crate::BearerToken;
use crate::wire::{Principal, Readiness, RuntimeMetricsResponse, ServerConfig};

/// A client of the HTTP API, over a Unix socket or TCP.
///
/// Clones share a pool of connections. The client closes a connection that has been idle for 5 s. If
/// the server closes idle connections earlier, because its
/// [`Limits::head_timeout`](crate::Limits::head_timeout) is shorter, the next request can fail with
/// [`ClientError::Interrupted`].
///
/// # Errors
///
/// Every method that sends a request can fail with:
///
/// * [`ClientError::Unreachable`] if the request was not sent,
/// * [`ClientError::Interrupted`] if the server may have received the request,
/// * [`ClientError::Refused`] if the server responds with an error,
/// * [`ClientError::UnexpectedResponse`] if the server does not implement this API.
///
/// A method with the name or id of a box fails with [`ClientError::Name`], before it sends anything, if
/// that cannot be one. [`events`](Self::events) also fails with [`ClientError::StreamIdle`].
///
/// # Cancel safety
///
/// Dropping the future of any method discards the response. The server may still execute the request.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
/// use vmm_rest::Client;
/// use vmm_rest::wire::CreateBoxRequest;
///
/// let client = Client::unix(Path::new("/run/boxes/api.sock"))?;
/// let bx = client.create(&CreateBoxRequest::of("idle").name("nap")).await?;
/// let bx = client.start(&bx.box_id).await?;
/// println!("box {} runs in shim {:?}", bx.box_id, bx.pid);
/// client.remove("nap", true).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<BearerToken>,
    /// The socket or address of the server, for errors.
    at: String,
    response_timeout: Duration,
    stream_idle_timeout: Duration,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than any request to a server with default limits takes, apart from the grace period of a
/// stop.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);
/// Longer than the interval between two keep-alive comments of a server.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Shorter than a server with default limits keeps an idle connection.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

impl Client {
    /// Creates a client for the server at a Unix socket, without connecting.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if the HTTP client cannot be initialized.
    pub fn unix(socket: &Path) -> Result<Self, ClientError> {
        let at = socket.display().to_string();
        let http = builder().unix_socket(socket);
        Self::new(http, "http://localhost", None, at)
    }

    /// Creates a client for the server at an address of the form `http://HOST:PORT`, without connecting.
    ///
    /// The connection is not encrypted and does not use a proxy. Use a tunnel across an untrusted
    /// network.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if the address is invalid. An address with a user, a password or a query
    /// is invalid, since errors show the address.
    pub fn tcp(url: &str, token: Option<BearerToken>) -> Result<Self, ClientError> {
        Self::new(builder(), url, token, url.to_owned())
    }

    /// Sets how long a response may take before the request fails with [`ClientError::Interrupted`], in
    /// addition to the grace period of a stop; 120 s by default. Must be longer than the
    /// [`Limits::request_timeout`](crate::Limits::request_timeout) of the server.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    fn new(
        http: reqwest::ClientBuilder,
        url: &str,
        token: Option<BearerToken>,
        at: String,
    ) -> Result<Self, ClientError> {
        let invalid = |reason: String| ClientError::Address {
            url: without_secrets(&at),
            reason,
        };
        let base = Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        if base.scheme() != "http" || base.cannot_be_a_base() {
            return Err(invalid("not an http address".to_owned()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            let reason = "it has a user or password; authenticate with a token instead";
            return Err(invalid(reason.to_owned()));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(invalid("it has a query or fragment".to_owned()));
        }
        let http = http.build().map_err(|error| invalid(error.to_string()))?;
        Ok(Self {
            http,
            base,
            token,
            at,
            response_timeout: RESPONSE_TIMEOUT,
            stream_idle_timeout: STREAM_IDLE_TIMEOUT,
        })
    }

    /// Returns the features and limits of the server.
    pub async fn config(&self) -> Result<ServerConfig, ClientError> {
        self.get(["v1", "config"]).await
    }

    /// Returns the identity that the server has assigned to this client.
    pub async fn me(&self) -> Result<Principal, ClientError> {
        self.get(["v1", "me"]).await
    }

    /// Returns the metrics of the VMM runtime.
    pub async fn metrics(&self) -> Result<RuntimeMetricsResponse, ClientError> {
        self.get(["v1", "metrics"]).await
    }

    /// Returns the metrics of the VMM runtime as OpenMetrics text.
    pub async fn exposition(&self) -> Result<String, ClientError> {
        let request = self.request(Method::GET, ["metrics"])?;
        self.send(request).await?.check().await?.text().await
    }

    /// Returns whether the server can run boxes, and if not, why.
    pub async fn readiness(&self) -> Result<Readiness, ClientError> {
        let request = self.request(Method::GET, ["readyz"])?;
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => response.json().await,
            _ => Err(response.into_error().await),
        }
    }

    /// Subscribes to the changes of all boxes from now on.
    pub async fn events(&self) -> Result<BoxEvents, ClientError> {
        let request = self.request(Method::GET, ["v1", "events"])?;
        // The timeout of reqwest covers the whole body, which has no end.
        let request = request.timeout(Duration::MAX);
        let response = async { self.send(request).await?.check().await };
        let idle_timeout = self.stream_idle_timeout;
        let response = timeout(idle_timeout, response)
            .await
            .map_err(|_| ClientError::stream_idle(&self.at, idle_timeout))??;
        Ok(BoxEvents::new(response, idle_timeout))
    }

    /// Returns whether the server has the resource of this path.
    async fn head<const N: usize>(&self, path: [&str; N]) -> Result<bool, ClientError> {
        let request = self.request(Method::HEAD, path)?;
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(response.into_error_by_status()),
        }
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
        // The URL parser would resolve these to another path.
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
        let request = request.timeout(self.response_timeout);
        match &self.token {
            Some(token) => request.bearer_auth(token.as_str()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<ServerResponse, ClientError> {
        let at = self.at.clone();
        match request.send().await {
            Ok(response) => Ok(ServerResponse { at, response }),
            Err(source) if source.is_connect() => Err(ClientError::Unreachable { at, source }),
            Err(source) => Err(ClientError::Interrupted { at, source }),
        }
    }
}

/// Removes user, password, query and fragment from an address, which may be malformed.
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
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .redirect(redirect::Policy::none())
        // A proxy would receive the token.
        .no_proxy()
}

#[cfg(test)]
mod tests;
