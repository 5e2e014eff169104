//! Responses that the server can send again.

use std::time::SystemTime;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};

use super::idempotency_journal::JournalEntry;
use crate::wire::ErrorModel;

/// A response that can be sent again.
#[derive(Clone, Debug)]
pub(super) struct RecordedResponse {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    error: Option<ErrorModel>,
    body: Bytes,
}

impl RecordedResponse {
    pub(super) async fn record(response: Response) -> (Self, Response) {
        let (parts, body) = response.into_parts();
        // The handlers build their bodies in memory, so the read is bounded.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        let recorded = Self {
            status: parts.status,
            headers: parts.headers.clone(),
            error: parts.extensions.get().cloned(),
            body: body.clone(),
        };
        (recorded, Response::from_parts(parts, Body::from(body)))
    }

    pub(super) fn into_entry(self, key: String, fingerprint: u64, at: SystemTime) -> JournalEntry {
        let headers = self.headers.iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        });
        JournalEntry {
            key,
            fingerprint,
            at,
            status: self.status.as_u16(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(&self.body).into_owned(),
        }
    }

    pub(super) fn from_entry(entry: JournalEntry) -> Option<Self> {
        let headers = entry.headers.iter().filter_map(|(name, value)| {
            let name: HeaderName = name.parse().ok()?;
            Some((name, value.parse().ok()?))
        });
        Some(Self {
            status: StatusCode::from_u16(entry.status).ok()?,
            headers: headers.collect(),
            error: None,
            body: entry.body.into(),
        })
    }
}

impl IntoResponse for RecordedResponse {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.headers, self.body).into_response();
        if let Some(error) = self.error {
            response.extensions_mut().insert(error);
        }
        response
    }
}
