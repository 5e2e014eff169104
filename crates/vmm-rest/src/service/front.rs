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
    ApiState, Closing, Connection, HangUp, Impatient, Limits, Listener, Place, Room, answer,
};

/// How long to wait when no connection can be accepted: no descriptors are left, most often.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// As many as the kernel lets wait for a listener, unless it is told otherwise, listen(2). Those
/// who come while these are let in do not delay the end.
const BACKLOG: usize = 4096;

const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// What takes connections in from the listeners, and sees them out at the end.
#[derive(Debug)]
pub(crate) struct Front {
    http: http1::Builder,
    room: Room,
    write_timeout: Duration,
    connections: TaskTracker,
    /// Those that do not end with their connection.
    requests: TaskTracker,
    accept_failures: Arc<AtomicU64>,
    /// Cancelled when the server is to end.
    closing: CancellationToken,
    /// Cancelled when connections must end.
    kill: CancellationToken,
}

impl Front {
    /// The requests that do not end with their connection are in the tracker.
    pub(crate) fn new(limits: &Limits, state: &ApiState, requests: TaskTracker) -> Self {
        Self {
            http: http(limits),
            room: Room::new(limits.connections),
            write_timeout: limits.write_timeout,
            connections: TaskTracker::new(),
            requests,
            accept_failures: Arc::clone(&state.accept_failures),
            closing: state.closing.clone(),
            kill: CancellationToken::new(),
        }
    }

    /// Until the server is to end, and those who have come by then are let in; takes the listener
    /// with it.
    pub(crate) async fn accept(&self, listener: Listener, router: Router) {
        // All is not finished while some are still to be let in.
        let _pending = self.connections.token();
        let accept = async {
            self.accept_more(&listener, &router).await;
            for _ in 0..BACKLOG {
                match listener.accept_arrived() {
                    Ok(connection) => self.let_in(connection, &listener, &router).await,
                    Err(error) if is_of_one_client(&error) => {}
                    Err(_) => break,
                }
            }
        };
        tokio::select! {
            () = self.kill.cancelled() => {}
            () = accept => {}
        }
    }

    /// Until the server is to end.
    async fn accept_more(&self, listener: &Listener, router: &Router) {
        let mut failing = false;
        while let Some(accepted) = self.closing.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok(connection) => {
                    if mem::take(&mut failing) {
                        tracing::info!("connections can be accepted again");
                    }
                    self.let_in(connection, listener, router).await;
                }
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => {
                    self.accept_failures.fetch_add(1, Relaxed);
                    if !mem::replace(&mut failing, true) {
                        tracing::error!(%error, "cannot accept connections");
                    }
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    /// Until there is room it waits, and those after it in the backlog.
    async fn let_in(&self, connection: Connection, listener: &Listener, router: &Router) {
        let kill = self.kill.child_token();
        let place = self.room.place(listener.access(), &kill, &self.closing);
        let Some(place) = place.await.map(Arc::new) else {
            return;
        };
        let serve = self.connection(connection, kill, Arc::downgrade(&place), router.clone());
        self.connections.spawn(async move {
            serve.await;
            drop(place);
        });
    }

    fn connection(
        &self,
        connection: Connection,
        kill: CancellationToken,
        place: Weak<Place>,
        router: Router,
    ) -> impl Future<Output = ()> + Send + 'static {
        let closing = self.closing.clone();
        let hang_up = HangUp::new(kill.clone());
        let connection = Arc::new(connection);
        let client = Arc::downgrade(&connection);
        let connection = Closing::new(connection, closing.clone());
        let connection = Impatient::new(connection, self.write_timeout);
        let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(hang_up.clone());
            request.extensions_mut().insert(client.clone());
            request.extensions_mut().insert(place.clone());
            request.map(Body::new)
        });
        let service = service.map_response(move |answer: Response| {
            let mut answer = answer::without_idle_length(answer);
            if closing.is_cancelled() {
                answer::say_last(&mut answer);
            }
            answer
        });
        let served = self
            .http
            .serve_connection(TokioIo::new(connection), TowerToHyperService::new(service));
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

    /// Until the server is to end, then until all is finished, or the time is up.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.closing.cancelled().await;
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

/// Ends the connections of a server that is dropped.
impl Drop for Front {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // It is added to the time, which has an end.
        .header_read_timeout(limits.head_timeout.min(FOR_EVER))
        // Who says no more may still listen, but to events.
        .half_close(true)
        .max_buf_size(MAX_HEAD);
    http
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
