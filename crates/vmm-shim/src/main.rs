//! The program `vmm-shim`: started by a VMM runtime, one process per box.

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    vmm_shim::run_if_shim();
    let _ = writeln!(
        io::stderr(),
        "vmm-shim {} is started by a VMM runtime, once per box, and cannot be run by hand.\n\
         Give its path to RuntimeOptions::shim_program.",
        env!("CARGO_PKG_VERSION"),
    );
    ExitCode::from(64) // EX_USAGE, sysexits(3)
}
