//! The HTTP API of a VMM runtime: a [`Server`], a typed [`Client`], and the [`wire`] types that both
//! share.
//!
//! The API is a subset of a public API. Clients of that API work unchanged with the part that is
//! implemented here; a request for any other part is rejected with an error that names it. The server
//! adds metrics for Prometheus, health probes, a stream of events, and its own OpenAPI document.
//!
//! | path | purpose |
//! |---|---|
//! | `GET /v1/config`, `GET /v1/me` | features of the server, identity of the client |
//! | `GET`, `POST /v1/boxes` | list boxes, create a box |
//! | `GET`, `HEAD`, `DELETE /v1/boxes/{id}` | inspect a box, check that it exists, remove it |
//! | `POST /v1/boxes/{id}/start`, `/stop` | start and stop a box |
//! | `GET /v1/metrics`, `/v1/boxes/{id}/metrics` | metrics as JSON |
//! | `GET /v1/events` | changes of boxes as server-sent events |
//! | `GET /v1/openapi.json` | the OpenAPI document |
//! | `GET /metrics` | metrics as OpenMetrics text |
//! | `GET /healthz`, `/readyz` | whether the server responds, whether it can run boxes |
//!
//! # When to use something else
//!
//! A program that only runs boxes for itself embeds `vmm-runtime` and needs no HTTP API.
//!
//! # Examples
//!
//! [`Server`] shows how to serve a runtime, [`Server::router`] how to mount the API in another axum
//! application, and [`Client`] how to send requests:
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//!
//! let client = vmm_rest::Client::unix(Path::new("/run/boxes/api.sock"))?;
//! for bx in client.all_boxes().await? {
//!     println!("{} {}", bx.box_id, bx.status);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! Both are enabled by default:
//!
//! * `client`: [`Client`]. A build with this feature alone compiles neither axum nor `vmm-runtime`.
//! * `server`: [`Server`], [`Listener`], [`ImageTable`] and [`openapi()`].
//!
//! [`BearerToken`] and the [`wire`] types need no feature.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod bearer_token;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod service;
pub mod wire;

pub use bearer_token::{BearerToken, TokenError};
#[cfg(feature = "client")]
pub use client::{
    BoxEvents, BoxLogs, Client, ClientError, ExecutionEvent, ExecutionEvents, ExecutionInput,
};
#[cfg(feature = "server")]
pub use service::{Limits, ListenError, Listener, RouterAccess, Server, openapi};
#[cfg(feature = "server")]
pub use vmm_runtime::{Image, ImageError, ImageTable};

/// What the fuzz targets in `tests/fuzz` check.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz {
    #[cfg(feature = "client")]
    pub use crate::client::fuzz::responses;
    #[cfg(feature = "server")]
    pub use crate::service::fuzz::{idempotency_keys, requests};
}

/// Compiles the code of the README.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;
