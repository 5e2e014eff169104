//! The program itself, from outside: one module per behaviour.

// What cannot be set up, or does not hold, has failed.
#![allow(clippy::panic, clippy::unwrap_used)]

mod command_line;
mod connecting;
mod descriptors;
mod dist;
mod fixture;
mod guarded_home;
mod held_reaper;
mod lifecycle;
mod overtaken_start;
mod process;
mod restart;
mod run;
mod service_manager;
mod shutdown;
mod terminal;
mod top;
mod web;
