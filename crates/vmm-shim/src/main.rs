//! The program `vmm-shim`. A VMM runtime starts one process of it per box.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;

fn main() -> ExitCode {
    vmm_shim::Shim::new().engine(vmm_shim::Qemu).run_if_shim();
    let argument = env::args_os().nth(1);
    match argument.as_deref().and_then(OsStr::to_str) {
        Some("--version") => match writeln!(io::stdout(), "vmm-shim {}", vmm_shim::VERSION) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Some("idle") => idle(),
        _ => {
            let _ = writeln!(
                io::stderr(),
                "vmm-shim {} is not for manual use: a VMM runtime starts it, once per box.\n\
                 Pass its path to RuntimeOptions::shim_program.",
                vmm_shim::VERSION,
            );
            ExitCode::from(64) // EX_USAGE, sysexits(3)
        }
    }
}

/// Sleeps until a signal ends the process: a payload that does nothing, for a daemon to offer.
fn idle() -> ! {
    loop {
        thread::park();
    }
}
