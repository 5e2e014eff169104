use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Extension};
use axum::http::StatusCode;
use axum::{Router, middleware};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;
use vmm_runtime::VmmRuntime;

use super::event_hub::EventHub;
use super::{
    ApiState, Connection, HangUp, Impatient, Limits, Listener, access, answer, body, routes,
};
use crate::ImageTable;

/// Serves a runtime over HTTP.
///
/// # Its end
///
/// The token ends it: nothing new is accepted, requests that have arrived are finished, and
/// [`serve`](Self::serve) returns. Only then shut the runtime down, for they need it.
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
    router: Router,
    limits: Limits,
    closing: CancellationToken,
    /// See [`Front::requests`].
    requests: TaskTracker,
}

/// How long to wait when no connection can be accepted: no descriptors are left, most often.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;

impl Server {
    /// Of this runtime. Cancelling the token ends it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(
        runtime: &VmmRuntime,
        images: ImageTable,
        limits: Limits,
        shutdown: &CancellationToken,
    ) -> Self {
        let closing = shutdown.child_token();
        let state = ApiState {
            runtime: runtime.clone(),
            images: Arc::new(images),
            events: Arc::new(EventHub::new(runtime.events())),
            event_readers: room_for(limits.event_readers),
            reaper_silence: limits.reaper_silence,
            closing: closing.clone(),
        };
        let requests = TaskTracker::new();
        Self {
            router: router(state, &limits).layer(Extension(requests.clone())),
            limits,
            closing,
            requests,
        }
    }

    /// Serves until the token is cancelled, then until the requests that are under way have been
    /// finished, or their time is up.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the listeners and all connections; what a request has begun with
    /// a box goes on.
    pub async fn serve(self, listeners: impl IntoIterator<Item = Listener>) {
        let kill = CancellationToken::new();
        let _kill_when_dropped = kill.clone().drop_guard();
        let front = Front {
            http: http(&self.limits),
            room: self.limits.connections,
            write_timeout: self.limits.write_timeout,
            connections: TaskTracker::new(),
            requests: self.requests,
            closing: self.closing,
            kill,
        };
        let accepting = listeners.into_iter().map(|listener| {
            let router = self
                .router
                .clone()
                .layer(Extension(listener.access().clone()));
            front.accept(listener, router)
        });
        futures::future::join_all(accepting).await;
        front.closing.cancelled().await;
        front.drain(self.limits.drain_timeout).await;
    }
}

/// What the listeners share.
struct Front {
    http: http1::Builder,
    room: usize,
    write_timeout: Duration,
    connections: TaskTracker,
    /// Those that do not end with their connection.
    requests: TaskTracker,
    /// Cancelled when the server is to end.
    closing: CancellationToken,
    /// Cancelled when connections must end.
    kill: CancellationToken,
}

impl Front {
    /// Until the server is to end; takes the listener with it.
    async fn accept(&self, listener: Listener, router: Router) {
        // Its own: strangers at one listener do not shut out the owner at another.
        let permits = room_for(self.room);
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok(connection) => {
                        // Until there is room it waits, and those after it in the backlog.
                        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                            return;
                        };
                        let serve = self.connection(connection, router.clone());
                        self.connections.spawn(async move {
                            serve.await;
                            drop(permit);
                        });
                    }
                    Err(error) if is_of_one_client(&error) => {}
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a connection");
                        sleep(ACCEPT_AGAIN).await;
                    }
                }
            }
        };
        tokio::select! {
            () = self.closing.cancelled() => {}
            () = accept => {}
        }
    }

    fn connection(
        &self,
        connection: Connection,
        router: Router,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (closing, kill) = (self.closing.clone(), self.kill.child_token());
        let hang_up = HangUp::new(kill.clone());
        let asked = Arc::new(AtomicBool::new(false));
        let has_asked = Arc::clone(&asked);
        let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
            asked.store(true, Relaxed);
            request.extensions_mut().insert(hang_up.clone());
            request.map(Body::new)
        });
        let service = service.map_response(answer::without_idle_length);
        let service = TowerToHyperService::new(service);
        let connection = Impatient::new(connection, self.write_timeout);
        let served = self
            .http
            .serve_connection(TokioIo::new(connection), service);
        let served = async move {
            let mut served = pin!(served);
            tokio::select! {
                outcome = served.as_mut() => return outcome,
                () = closing.cancelled() => {}
            }
            // For the rest of its first head hyper would wait.
            if !has_asked.load(Relaxed) {
                return Ok(());
            }
            served.as_mut().graceful_shutdown();
            served.await
        };
        async move {
            tokio::select! {
                outcome = served => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a connection has ended");
                    }
                }
                () = kill.cancelled() => {}
            }
        }
    }

    async fn drain(self, limit: Duration) {
        self.connections.close();
        self.requests.close();
        let finished = async {
            // No request begins without one.
            self.connections.wait().await;
            self.requests.wait().await;
        };
        if timeout(limit, finished).await.is_err() {
            tracing::warn!(
                ?limit,
                "requests were not finished in time, and are given up"
            );
        }
        self.kill.cancel();
        self.connections.wait().await;
    }
}

fn room_for(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}

fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // It is added to the time, which has an end.
        .header_read_timeout(limits.head_timeout.min(FOR_EVER))
        // Who says no more may still listen.
        .half_close(true)
        .max_buf_size(MAX_HEAD);
    http
}

fn is_of_one_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

fn router(state: ApiState, limits: &Limits) -> Router {
    let (routes, _) = routes::all();
    let closing = state.closing.clone();
    // The last one is the first to see a request.
    routes
        .with_state(state)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(
            (limits.clone(), closing),
            body::take_in,
        ))
        .layer(middleware::from_fn(access::guard))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            limits.request_timeout,
        ))
        .layer(CatchPanicLayer::custom(answer::panicked))
        .layer(middleware::from_fn(answer::complete))
}
