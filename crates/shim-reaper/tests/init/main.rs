//! An init forwards signals, reaps orphans, and ends with the exit code of the program.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    missing_debug_implementations,
    unreachable_pub,
    unsafe_code
)]

#[path = "../common/mod.rs"]
mod common;
mod exits;
mod identity;
mod orphans;
mod program;
mod signals;
mod split;
mod terminal;
