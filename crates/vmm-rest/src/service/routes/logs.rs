use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{Method, header};
use axum::response::IntoResponse;
use futures::stream;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use utoipa::IntoParams;
use vmm_runtime::{BoxId, BoxStatus, ConsoleError, ConsoleReader, with_causes};

use super::boxes::BoxIdParam;
use super::events::{client_left, close_on_shutdown};
use crate::service::{ApiError, ApiState, Connection, ConnectionCloser, extract};
use crate::wire::{ErrorCode, ErrorResponse};

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
        (status = 429, description = "Too many clients are following boxes", body = ErrorResponse),
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
    let id = api.runtime.info(&id).await?.id;
    let mut reader = api.runtime.console(&id)?;
    if let Some(lines) = query.tail {
        let skip = move || reader.skip_to_last_lines(lines.into()).map(|()| reader);
        reader = run_blocking(skip)
            .await
            .map_err(|error| ApiError::new(ErrorCode::StorageError, with_causes(&error)))?;
    }
    let follow = query.follow && method != Method::HEAD;
    // Shared with the readers of events, which also keep a connection for long.
    let permit = follow.then(|| Arc::clone(&api.event_readers).try_acquire_owned());
    let Ok(permit) = permit.transpose() else {
        let message = "too many clients are following boxes";
        return Err(ApiError::new(ErrorCode::ResourceExhausted, message));
    };
    let follower = Follower {
        _close_task: close_on_shutdown(closer.map(|Extension(closer)| closer), &api.closing),
        client: client.map(|Extension(client)| client),
        api,
        id,
        reader,
        follow,
        _permit: permit,
    };
    let output = stream::try_unfold(follower, Follower::next);
    let content_type = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((content_type, Body::from_stream(output)))
}

/// The pause before the next read when there is no new output.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The longest chunk of a response.
const CHUNK_BYTES: usize = 1 << 16;

/// A client that reads the output of a box.
struct Follower {
    api: ApiState,
    id: BoxId,
    reader: ConsoleReader,
    follow: bool,
    /// `None` on a connection of another application's server.
    client: Option<Weak<Connection>>,
    _close_task: Option<AbortOnDropHandle<()>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Follower {
    /// Returns the next output, or `None` at its end.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, ConsoleError> {
        loop {
            // Checked before the read, so that a last read follows the end of the box.
            let is_last = !self.follow || self.api.closing.is_cancelled() || self.has_ended().await;
            let mut reader = self.reader;
            let read = move || {
                let mut chunk = vec![0; CHUNK_BYTES];
                let length = reader.read(&mut chunk)?;
                chunk.truncate(length);
                Ok((reader, chunk))
            };
            let (reader, chunk) = run_blocking(read).await?;
            self.reader = reader;
            if !chunk.is_empty() {
                return Ok(Some((chunk.into(), self)));
            }
            if is_last {
                return Ok(None);
            }
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {}
                () = self.api.closing.cancelled() => {}
                () = client_left(self.client.as_ref()) => return Ok(None),
            }
        }
    }

    async fn has_ended(&self) -> bool {
        match self.api.runtime.info(&self.id).await {
            Ok(info) => {
                matches!(info.status, BoxStatus::Stopped | BoxStatus::Failed) && !info.restarting
            }
            // It was removed.
            Err(_) => true,
        }
    }
}

/// Runs `work`, which blocks on the disk.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConsoleError> + Send + 'static,
) -> Result<T, ConsoleError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ConsoleError::Read(error.into())),
    }
}
