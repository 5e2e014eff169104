//! A program that may be pid 1 of a container: an init reaps the orphans and forwards signals, and the
//! program only waits for its own children.
//!
//! As pid 1: `unshare --pid --fork --mount-proc target/debug/examples/init`

use std::error::Error;
use std::fs;
use std::os::unix::process::parent_id;
use std::process::{self, Command, ExitCode};
use std::thread;
use std::time::Duration;

use shim_reaper::init::Init;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    // First, and not below `#[tokio::main]`: a process with threads cannot be forked. A program that
    // needs an init only in a container calls `run_if_pid_1`.
    Init::new().stop_remaining(Duration::from_secs(10)).run()?;

    let init = parent_id();
    println!(
        "the init is process {init}, the program is process {}",
        process::id()
    );

    // Leaves ten processes behind, which become children of the init.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1 & done";
    let status = Command::new("sh").args(["-c", script]).status()?;
    println!("the shell has exited: {status}");
    thread::sleep(Duration::from_secs(1));

    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
    println!("children of the init: {children}");

    // The exit code of the init.
    Ok(ExitCode::SUCCESS)
}
