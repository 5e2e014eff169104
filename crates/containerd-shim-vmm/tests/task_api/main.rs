//! The Task API of the program, as its clients call it, without a containerd.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod control_groups;
mod early_signals;
mod fixture;
#[path = "../common/image.rs"]
mod image;
mod memory;
mod oci_spec;
mod output;
mod processes;
mod protocol;
#[path = "../common/memory.rs"]
mod smaps;
