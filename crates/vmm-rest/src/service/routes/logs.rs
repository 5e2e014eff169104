use std::sync::Weak;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{Method, header};
use axum::response::IntoResponse;
use futures::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use utoipa::IntoParams;
use vmm_runtime::{ConsoleError, ConsoleQuery, ConsoleStream};

use super::boxes::BoxIdParam;
use super::events::{client_left, close_on_shutdown};
use crate::service::{ApiError, ApiState, Connection, ConnectionCloser, extract};
use crate::wire::ErrorResponse;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Sends new output until the box has ended.
    #[param(default = false, required = false)]
    follow: bool,
    /// Sends only the last lines.
    #[param(minimum = 0, maximum = 4294967295u32, value_type = Option<i64>, nullable = false)]
    tail: Option<u32>,
}

/// Returns the output of a box that is kept: stdout and stderr of its last run.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/logs", tag = "Boxes", operation_id = "getBoxLogs",
    params(BoxIdParam, LogsQuery),
    responses(
        (status = 200, description = "The output, as the payload has written it", body = Vec<u8>,
            content_type = "application/octet-stream"),
        (status = 400, description = "The query is malformed", body = ErrorResponse),
        (status = 404, description = "The box was not found", body = ErrorResponse),
        (status = 429, description = "Too many streams are open", body = ErrorResponse),
    ),
)]
pub(super) async fn logs(
    method: Method,
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
    extract::Query(query): extract::Query<LogsQuery>,
    closer: Option<Extension<ConnectionCloser>>,
    client: Option<Extension<Weak<Connection>>>,
) -> Result<impl IntoResponse, ApiError> {
    let follow = query.follow && method != Method::HEAD;
    let console = ConsoleQuery::default()
        .follow(follow)
        .tail(query.tail.map(u64::from));
    let console = api.runtime.console(&id, console).await?;
    let permit = follow.then(|| api.stream_permit()).transpose()?;
    let follower = Follower {
        console,
        _close_task: close_on_shutdown(closer.map(|Extension(closer)| closer), &api.closing),
        closing: api.closing,
        client: client.map(|Extension(client)| client),
        _permit: permit,
    };
    let output = stream::unfold(follower, Follower::next);
    let content_type = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((content_type, Body::from_stream(output)))
}

/// A client that reads the output of a box.
struct Follower {
    console: ConsoleStream,
    closing: CancellationToken,
    /// `None` on a connection of another application's server.
    client: Option<Weak<Connection>>,
    _close_task: Option<AbortOnDropHandle<()>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Follower {
    /// Returns the next output, or `None` at its end.
    async fn next(mut self) -> Option<(Result<Bytes, ConsoleError>, Self)> {
        let chunk = tokio::select! {
            chunk = self.console.next() => chunk,
            () = self.closing.cancelled() => {
                self.console.stop_following();
                self.console.next().await
            }
            () = client_left(self.client.as_ref()) => None,
        };
        Some((chunk?.map(Bytes::from), self))
    }
}
