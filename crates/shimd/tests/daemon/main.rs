//! Tests of the program `shimd`, one module per behaviour.

// A test may panic, also in its helper functions.
#![allow(clippy::panic, clippy::unwrap_used)]

mod chaos;
mod command_line;
mod connecting;
mod copy;
mod delayed_start;
mod descriptors;
mod dist;
mod exec;
mod fixture;
mod guarded_home;
mod guests;
mod image;
mod images;
mod lifecycle;
mod operators;
mod paused_reaper;
mod process;
mod restart;
mod run;
mod service_manager;
mod shim_program;
mod shutdown;
mod terminal;
mod threads;
mod top;
mod warm_shims;
mod web;
