//! The HTTP service of a VMM runtime: a [`Server`], a typed [`Client`], and the [`wire`] types that
//! both share.
//!
//! The surface is a subset of a public API, so that clients which are written for that one work
//! unchanged for what is there, and are told by name what is not. Beside it there are metrics for
//! Prometheus, probes for whoever supervises the server, a stream of events, and the server's own
//! OpenAPI document.
//!
//! | path | |
//! |---|---|
//! | `GET /v1/config`, `GET /v1/me` | what there is, who is asking |
//! | `GET`, `POST /v1/boxes` | list, create |
//! | `GET`, `HEAD`, `DELETE /v1/boxes/{id}` | inspect, look for, remove |
//! | `POST /v1/boxes/{id}/start`, `/stop` | start, stop |
//! | `GET /v1/metrics`, `/v1/boxes/{id}/metrics` | numbers as JSON |
//! | `GET /v1/events` | server-sent events |
//! | `GET /v1/openapi.json` | the document |
//! | `GET /metrics` | numbers as OpenMetrics text |
//! | `GET /healthz`, `/readyz` | whether it answers, whether it can run boxes |
//!
//! # When to use something else
//!
//! A program that runs boxes for itself embeds `vmm-runtime`, without a service in between.

#![forbid(unsafe_code)]

mod bearer_token;
mod client;
mod images;
mod service;
pub mod wire;

pub use bearer_token::{BearerToken, TokenError};
pub use client::{BoxEvents, Client, ClientError};
pub use images::{Image, ImageError, ImageTable};
pub use service::{Limits, ListenError, Listener, Server, openapi};
