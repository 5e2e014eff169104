//! Files in guests, as tar archives.

use std::error::Error;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse};
use futures::StreamExt;
use tokio::io::AsyncRead;
use tokio::time::timeout;
use tokio_util::io::{ReaderStream, StreamReader};
use vmm_runtime::{GetSpec, PutSpec, RuntimeError};

use super::boxes::BoxIdParam;
use crate::service::{ApiError, ApiState, extract};
use crate::wire::{ErrorCode, ErrorResponse, GetFilesQuery, PutFilesQuery};

const TAR: &str = "application/x-tar";

/// Whether the archive was made of a directory, for a copy as `docker cp` does it. Clients of the public
/// API read it; its document does not have it.
const SOURCE_IS_DIR: &str = "x-boxlite-source-is-dir";

/// How many bytes of an archive are read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// How long the rest of an archive is read after a failure. A client that is still sending may
/// otherwise not see the response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Extracts a tar archive in the guest of a running box. Owners and modes are those of the archive. The
/// server reads as fast as the guest writes.
#[utoipa::path(
    put, path = "/v1/boxes/{box_id}/files", tag = "Files", operation_id = "uploadFiles",
    params(BoxIdParam, PutFilesQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar",
        description = "The archive"),
    responses(
        (status = 204, description = "All files are extracted"),
        (status = 400, description = "The query or archive is malformed, the path is not a directory, \
            or the payload is not a guest", body = ErrorResponse),
        (status = 404, description = "The box, or the parent of a new file, was not found",
            body = ErrorResponse),
        (status = 409, description = "The box is not running, or a file exists",
            body = ErrorResponse),
        (status = 415, description = "The Content-Type is not application/x-tar",
            body = ErrorResponse),
        (status = 422, description = "The guest could not write the files", body = ErrorResponse),
        (status = 429, description = "Too many streams are open", body = ErrorResponse),
    ),
)]
pub(super) async fn put(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
    extract::Query(query): extract::Query<PutFilesQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let chunks = body.into_data_stream();
    let mut archive = StreamReader::new(chunks.map(|chunk| chunk.map_err(io::Error::other)));
    let result = extract_archive(&api, &id, query, &headers, &mut archive).await;
    if result.is_err() {
        let mut sink = tokio::io::sink();
        let rest = tokio::io::copy(&mut archive, &mut sink);
        let _ = timeout(LINGER_TIMEOUT, rest).await;
    }
    result.map(|()| StatusCode::NO_CONTENT)
}

async fn extract_archive(
    api: &ApiState,
    id: &str,
    query: PutFilesQuery,
    headers: &HeaderMap,
    archive: impl AsyncRead + Unpin,
) -> Result<(), ApiError> {
    let is_tar =
        |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(TAR.as_bytes());
    if !headers.get(header::CONTENT_TYPE).is_none_or(is_tar) {
        let message = format!("the Content-Type is not that of an archive; send `{TAR}`");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::invalid(message).with_status(status));
    }
    let spec = PutSpec::new(checked_path(query.path)?)
        .overwrite(query.overwrite)
        .rename_root(query.source_is_dir.is_some());
    let _permit = api.stream_permit()?;
    let result = api.runtime.put(id, spec, archive).await;
    result.map_err(|error| {
        if is_timeout(&error) {
            ApiError::new(ErrorCode::Timeout, "the archive did not arrive in time")
        } else {
            error.into()
        }
    })
}

/// Returns whether the client took too long to send a part of the archive.
fn is_timeout(error: &RuntimeError) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::TimedOut
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Returns a file of the guest of a running box, or a directory with all that is below it, as a tar
/// archive. The guest reads as fast as the client. A transfer that fails later closes the connection
/// before the end of the response.
#[utoipa::path(
    get, path = "/v1/boxes/{box_id}/files", tag = "Files", operation_id = "downloadFiles",
    params(BoxIdParam, GetFilesQuery),
    responses(
        (status = 200, description = "The archive", body = Vec<u8>,
            content_type = "application/x-tar"),
        (status = 400, description = "The query is malformed, or the payload is not a guest",
            body = ErrorResponse),
        (status = 404, description = "The box or file was not found", body = ErrorResponse),
        (status = 409, description = "The box is not running", body = ErrorResponse),
        (status = 422, description = "The guest could not read the files", body = ErrorResponse),
        (status = 429, description = "Too many streams are open", body = ErrorResponse),
    ),
)]
pub(super) async fn get(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
    extract::Query(query): extract::Query<GetFilesQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let spec = GetSpec::new(checked_path(query.path)?).follow_symlinks(query.follow_symlinks);
    let permit = api.stream_permit()?;
    let archive = api.runtime.get(&id, spec).await?;
    let is_dir = archive
        .is_dir()
        .map(|is_dir| AppendHeaders([(SOURCE_IS_DIR, is_dir.to_string())]));
    let chunks = ReaderStream::with_capacity(archive, CHUNK_BYTES).inspect(move |_| {
        // Held until the stream is dropped.
        let _ = &permit;
    });
    let content_type = AppendHeaders([(header::CONTENT_TYPE, TAR)]);
    Ok((content_type, is_dir, Body::from_stream(chunks)))
}

fn checked_path(path: String) -> Result<String, ApiError> {
    if !path.starts_with('/') || path.contains('\0') {
        let message = "path: must be an absolute path without NUL characters";
        return Err(ApiError::invalid(message));
    }
    Ok(path)
}
