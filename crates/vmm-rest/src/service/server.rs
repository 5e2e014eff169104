use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Extension};
use axum::{Router, middleware};
use futures::future::{join, join_all};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use vmm_runtime::{ImageTable, VmmRuntime};

use super::idempotency::IdempotencyKeys;
use super::state::EventHub;
use super::{
    Acceptor, Access, ApiState, Limits, Listener, RouterAccess, authenticate, request_body,
    response, routes,
};

/// Serves the HTTP API of a VMM runtime.
///
/// [`serve`](Self::serve) serves it on Unix sockets and TCP addresses, with protection against slow
/// and unauthenticated clients. [`router`](Self::router) returns it as an axum [`Router`], to mount in
/// an application that has an HTTP server already.
///
/// # Errors
///
/// The body of an error response is an [`ErrorResponse`](crate::wire::ErrorResponse). The exception is
/// a request that is not valid HTTP: it gets 400, 414 (target too long) or 431 (head longer than
/// 64 KiB, or more than 100 header fields) without a body and without a request id.
///
/// # Shutdown
///
/// Cancelling the token shuts the server down. The server finishes the requests that have arrived,
/// including those on connections in the backlog; it does not wait for further requests. Then
/// [`serve`](Self::serve) returns. Shut the VMM runtime down after that, since requests use it.
///
/// # Examples
///
/// ```no_run
/// # async fn example(runtime: vmm_runtime::VmmRuntime) -> Result<(), Box<dyn std::error::Error>> {
/// use std::{path::Path, time::Duration};
/// use tokio_util::sync::CancellationToken;
/// use vmm_rest::{ImageTable, Limits, Listener, Server};
///
/// let shutdown = CancellationToken::new();
/// let socket = Listener::unix(Path::new("/run/boxes/api.sock")).await?;
/// let server = Server::new(&runtime, ImageTable::builtin(), Limits::default(), &shutdown);
/// server.serve([socket]).await;
/// runtime.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    acceptor: Acceptor,
    router: Router,
    drain_timeout: Duration,
    keys: IdempotencyKeys,
}

impl Server {
    /// Creates a server for a VMM runtime. Cancelling the token shuts the server down.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub fn new(
        runtime: &VmmRuntime,
        images: ImageTable,
        limits: Limits,
        shutdown: &CancellationToken,
    ) -> Self {
        let streams = limits.streams.min(Semaphore::MAX_PERMITS);
        let state = ApiState {
            runtime: runtime.clone(),
            images: Arc::new(images),
            events: Arc::new(EventHub::new(runtime.events())),
            attach_timeout: limits.attach_timeout,
            streams: Arc::new(Semaphore::new(streams)),
            accept_failures: Arc::default(),
            reaper_stall_timeout: limits.reaper_stall_timeout,
            apply_default_limits: limits.apply_default_limits,
            closing: shutdown.child_token(),
        };
        let requests = TaskTracker::new();
        let keys = IdempotencyKeys::default();
        Self {
            acceptor: Acceptor::new(&limits, &state, requests.clone()),
            drain_timeout: limits.drain_timeout,
            router: router(state, &limits, &keys).layer(Extension(requests)),
            keys,
        }
    }

    /// Keeps the responses to requests with an idempotency key in this file, so that a request that
    /// is repeated after a restart of the server gets the same response. Without it, they are in
    /// memory only. Only one server at a time can use the file.
    ///
    /// A request that a crash interrupts has no response yet, and is executed when it is repeated.
    ///
    /// # Errors
    ///
    /// The error of reading or replacing the file, or if the server has one already.
    pub fn keep_idempotency_keys(self, path: &Path) -> io::Result<Self> {
        self.keys.open_journal(path)?;
        Ok(self)
    }

    /// Serves until the token is cancelled, then until the requests in progress have finished, or
    /// [`Limits::drain_timeout`] has passed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listeners and all connections. Operations on boxes that requests
    /// have started continue.
    pub async fn serve(self, listeners: impl IntoIterator<Item = Listener>) {
        let accepting = listeners.into_iter().map(|listener| {
            let router = self.router_for(listener.access().clone());
            self.acceptor.accept(listener, router)
        });
        let drained = self.acceptor.drain(self.drain_timeout);
        join(join_all(accepting), drained).await;
    }

    /// Returns the API as an axum 0.8 [`Router`], to mount in another application.
    ///
    /// Mount it with [`Router::nest`], under any prefix: the router has a fallback of its own for unknown
    /// paths, which [`Router::merge`] would extend to the paths of the application. A
    /// [`Client`](crate::Client) connects to `http://HOST:PORT/PREFIX`.
    ///
    /// The application serves the connections. Of the [`Limits`], those for `connections`,
    /// `head_timeout`, `write_timeout` and `drain_timeout` therefore do not apply to the router.
    ///
    /// # Shutdown
    ///
    /// Cancelling the server's token ends the event streams of the router, which otherwise keep the
    /// connections of the application open. A request with an idempotency key continues when its client
    /// disconnects; to wait for these, call [`serve`](Self::serve), which needs no listeners.
    ///
    /// A client that does not read its event stream can delay a graceful shutdown of the application:
    /// put a timeout around it.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(runtime: vmm_runtime::VmmRuntime) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use axum::{Router, routing::get};
    /// use tokio::net::TcpListener;
    /// use tokio_util::sync::CancellationToken;
    /// use vmm_rest::{BearerToken, ImageTable, Limits, RouterAccess, Server};
    ///
    /// let shutdown = CancellationToken::new();
    /// let server = Server::new(&runtime, ImageTable::builtin(), Limits::default(), &shutdown);
    /// let token = BearerToken::new("0123456789abcdef0123456789abcdef")?;
    /// let application = Router::new()
    ///     .route("/", get(async || "the application"))
    ///     .nest("/vmm", server.router(RouterAccess::Token(token)));
    ///
    /// let listener = TcpListener::bind("127.0.0.1:8080").await?;
    /// axum::serve(listener, application)
    ///     .with_graceful_shutdown(shutdown.clone().cancelled_owned())
    ///     .await?;
    /// server.serve([]).await;
    /// runtime.shutdown(Duration::from_secs(10)).await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn router(&self, access: RouterAccess) -> Router {
        self.router_for(access.into())
    }

    fn router_for(&self, access: Access) -> Router {
        self.router.clone().layer(Extension(access))
    }
}

fn router(state: ApiState, limits: &Limits, keys: &IdempotencyKeys) -> Router {
    let (routes, _) = routes::all(keys);
    let closing = state.closing.clone();
    // A request passes the layers from last to first.
    routes
        .with_state(state)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(
            (limits.clone(), closing),
            request_body::buffer,
        ))
        .layer(CatchPanicLayer::custom(response::handle_panic))
        .layer(middleware::from_fn(authenticate::authenticate))
        .layer(middleware::from_fn(response::finish))
}
