use std::io;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::{
    ApiState, Connection, ConnectionCloser, ConnectionLimits, ConnectionSlot, DrainingStream,
    Limits, Listener, WriteTimeout, response,
};

/// The pause after a failed accept, which most often means that no file descriptors are left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The most connections that a listener accepts after the shutdown has begun: the kernel's default
/// bound of the backlog, listen(2). Connections that arrive later do not delay the shutdown.
const BACKLOG_MAX: usize = 4096;

/// The longest head timeout: hyper adds it to the current time, which must not overflow.
const HEAD_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest head of a request, in bytes.
const HEAD_MAX_BYTES: usize = 64 << 10;

/// Accepts the connections of all listeners, serves them, and drains them on shutdown.
#[derive(Debug)]
pub(crate) struct Acceptor {
    http: http1::Builder,
    limits: ConnectionLimits,
    write_timeout: Duration,
    connections: TaskTracker,
    /// The requests that continue when their connection ends.
    requests: TaskTracker,
    accept_failures: Arc<AtomicU64>,
    /// Cancelled when the server shuts down.
    closing: CancellationToken,
    /// Cancelled to end all connections at once.
    kill: CancellationToken,
}

impl Acceptor {
    /// `requests` tracks the requests that continue when their connection ends.
    pub(crate) fn new(limits: &Limits, state: &ApiState, requests: TaskTracker) -> Self {
        Self {
            http: http(limits),
            limits: ConnectionLimits::new(limits.connections),
            write_timeout: limits.write_timeout,
            connections: TaskTracker::new(),
            requests,
            accept_failures: Arc::clone(&state.accept_failures),
            closing: state.closing.clone(),
            kill: CancellationToken::new(),
        }
    }

    /// Accepts connections until the server shuts down, then those that are in the backlog, and
    /// closes the listener.
    pub(crate) async fn accept(&self, listener: Listener, router: Router) {
        // Keeps `drain` waiting until the backlog is empty.
        let _pending = self.connections.token();
        let accept = async {
            self.accept_until_closing(&listener, &router).await;
            for _ in 0..BACKLOG_MAX {
                match listener.try_accept() {
                    Ok(connection) => self.admit(connection, &listener, &router).await,
                    Err(error) if is_client_error(&error) => {}
                    Err(_) => break,
                }
            }
        };
        tokio::select! {
            () = self.kill.cancelled() => {}
            () = accept => {}
        }
    }

    async fn accept_until_closing(&self, listener: &Listener, router: &Router) {
        let mut is_failing = false;
        while let Some(accepted) = self.closing.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok(connection) => {
                    if mem::take(&mut is_failing) {
                        tracing::info!("accepting connections again");
                    }
                    self.admit(connection, listener, router).await;
                }
                Err(error) if is_client_error(&error) => {}
                Err(error) => {
                    self.accept_failures.fetch_add(1, Relaxed);
                    if !mem::replace(&mut is_failing, true) {
                        tracing::error!(%error, "cannot accept connections");
                    }
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }

    /// Waits for a slot, then serves the connection in a task. Later connections wait in the backlog.
    async fn admit(&self, connection: Connection, listener: &Listener, router: &Router) {
        let close = self.kill.child_token();
        let slot = self
            .limits
            .acquire(listener.access(), &close, &self.closing);
        let Some(slot) = slot.await.map(Arc::new) else {
            return;
        };
        let serve = self.serve(connection, close, Arc::downgrade(&slot), router.clone());
        self.connections.spawn(async move {
            serve.await;
            drop(slot);
        });
    }

    fn serve(
        &self,
        connection: Connection,
        close: CancellationToken,
        slot: Weak<ConnectionSlot>,
        router: Router,
    ) -> impl Future<Output = ()> + Send + 'static {
        let closing = self.closing.clone();
        let closer = ConnectionCloser::new(close.clone());
        let connection = Arc::new(connection);
        let client = Arc::downgrade(&connection);
        let stream = DrainingStream::new(connection, closing.clone());
        let stream = WriteTimeout::new(stream, self.write_timeout);
        let write_timeout = stream.switch();
        let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(closer.clone());
            request.extensions_mut().insert(client.clone());
            request.extensions_mut().insert(slot.clone());
            request.extensions_mut().insert(write_timeout.clone());
            request.map(Body::new)
        });
        let service = service.map_response(move |response: Response| {
            let mut response = response::without_length_of_no_content(response);
            if closing.is_cancelled() {
                response::close_connection(&mut response);
            }
            response
        });
        let served = self
            .http
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .with_upgrades();
        async move {
            tokio::select! {
                outcome = served => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "connection failed");
                    }
                }
                () = close.cancelled() => {}
            }
        }
    }

    /// Waits until the server shuts down, then until all requests have finished, for at most `limit`.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.closing.cancelled().await;
        self.connections.close();
        self.requests.close();
        let finished = async {
            // In this order, since a connection can start a request but not the reverse.
            self.connections.wait().await;
            self.requests.wait().await;
        };
        if timeout(limit, finished).await.is_err() {
            tracing::warn!(?limit, "timed out waiting for requests");
        }
        self.kill.cancel();
        self.connections.wait().await;
    }
}

/// Ends the connections of a server that is dropped.
impl Drop for Acceptor {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout.min(HEAD_TIMEOUT_MAX))
        // A client that has shut down its side can still read the response.
        .half_close(true)
        .max_buf_size(HEAD_MAX_BYTES);
    http
}

/// Returns whether an accept failed because of one client, so that the next accept can succeed.
fn is_client_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
