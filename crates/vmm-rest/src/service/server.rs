use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Extension};
use axum::{Router, middleware};
use futures::future::{join, join_all};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use vmm_runtime::VmmRuntime;

use super::event_hub::EventHub;
use super::{ApiState, Front, Limits, Listener, access, answer, body, routes};
use crate::ImageTable;

/// Serves a runtime over HTTP.
///
/// # Errors
///
/// An answer that is an error has the error model as its body, but for what is no HTTP: such a
/// request gets 400, 414 for a target that is too long, or 431 for a head that is (64 KiB, 100
/// header fields), without a body and without an id.
///
/// # Its end
///
/// The token ends it: requests that have arrived are finished, also those that the kernel holds for
/// connections not yet accepted, nothing more is waited for, and [`serve`](Self::serve) returns.
/// Only then shut the runtime down, for they need it.
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
    front: Front,
    router: Router,
    drain_timeout: Duration,
}

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
        let state = ApiState {
            runtime: runtime.clone(),
            images: Arc::new(images),
            events: Arc::new(EventHub::new(runtime.events())),
            event_readers: room_for(limits.event_readers),
            accept_failures: Arc::default(),
            reaper_stall_timeout: limits.reaper_stall_timeout,
            apply_default_limits: limits.apply_default_limits,
            closing: shutdown.child_token(),
        };
        let requests = TaskTracker::new();
        Self {
            front: Front::new(&limits, &state, requests.clone()),
            drain_timeout: limits.drain_timeout,
            router: router(state, &limits).layer(Extension(requests)),
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
        let accepting = listeners.into_iter().map(|listener| {
            let router = self
                .router
                .clone()
                .layer(Extension(listener.access().clone()));
            self.front.accept(listener, router)
        });
        let drained = self.front.drain(self.drain_timeout);
        join(join_all(accepting), drained).await;
    }
}

fn room_for(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
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
        .layer(CatchPanicLayer::custom(answer::panicked))
        .layer(middleware::from_fn(access::guard))
        .layer(middleware::from_fn(answer::complete))
}
