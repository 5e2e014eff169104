//! The program `vmm-shim`. A VMM runtime starts one process of it per box.

#![cfg_attr(target_env = "gnu", no_main)]

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::thread;

#[cfg(not(target_env = "gnu"))]
fn main() -> std::process::ExitCode {
    run().into()
}

/// glibc calls it, and has already stored the arguments for std. A Rust `main` comes after the setup of std,
/// which reads the memory map of the process to report a stack overflow: 0.1 ms per start, and 14 KiB
/// of memory for as long as the box runs.
// SAFETY: the name and the signature are those that glibc expects, and nothing else has this name.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn main(_: std::ffi::c_int, _: *const *const std::ffi::c_char) -> std::ffi::c_int {
    run().into()
}

/// Returns the exit code.
fn run() -> u8 {
    vmm_shim::Shim::new().engine(vmm_shim::Qemu).run_if_shim();
    let argument = env::args_os().nth(1);
    match argument.as_deref().and_then(OsStr::to_str) {
        Some("--version") => match writeln!(io::stdout(), "vmm-shim {}", vmm_shim::VERSION) {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Some("idle") => idle(),
        _ => {
            let _ = writeln!(
                io::stderr(),
                "vmm-shim {} is not for manual use: a VMM runtime starts it, once per box.\n\
                 Open it as a ShimProgram, and pass that to RuntimeOptions::shim_program.",
                vmm_shim::VERSION,
            );
            64 // EX_USAGE, sysexits(3)
        }
    }
}

/// Sleeps until a signal ends the process: a payload that does nothing, for a daemon to offer.
fn idle() -> ! {
    loop {
        thread::park();
    }
}
