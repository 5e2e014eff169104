//! `shimd` runs boxes in shim processes, serves them over HTTP, and is the command line for them.
//!
//! `shimd serve` is the daemon, see [`daemon`]. The other [`commands`] are clients of a daemon.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod daemon;
mod failure;
mod home;
mod output;
mod server_args;
mod signals;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The runtime starts this program again as the shim. The check comes before any thread starts.
    daemon::shim().run_if_shim();
    cli::run()
}
