//! `shimd` runs boxes in shim processes, serves them over HTTP, and is the command line for them.
//!
//! The daemon is `shimd serve`, in [`daemon`]; the other [`commands`] are clients of one.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod daemon;
mod failure;
mod hang_up;
mod home;
mod output;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all, before there is any thread: this program is its own shim.
    vmm_shim::run_if_shim();
    cli::run()
}
