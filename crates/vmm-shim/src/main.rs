//! The program `vmm-shim`. A VMM runtime starts one process of it per box.

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    vmm_shim::run_if_shim();
    let _ = writeln!(
        io::stderr(),
        "vmm-shim {} is not for manual use: a VMM runtime starts it, once per box.\n\
         Pass its path to RuntimeOptions::shim_program.",
        env!("CARGO_PKG_VERSION"),
    );
    ExitCode::from(64) // EX_USAGE, sysexits(3)
}
