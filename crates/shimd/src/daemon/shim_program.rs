//! The program of the shims: `vmm-shim`, which is smaller than the daemon and so starts faster, or
//! the daemon itself.

use std::env;
use std::io::ErrorKind;

use vmm_runtime::{ShimProgram, ShimProgramError, with_causes};
use vmm_shim::{Qemu, Shim};

/// Returns the shim that this program can be. `vmm-shim` has the same engines.
pub(crate) fn shim() -> Shim {
    Shim::new().engine(Qemu)
}

/// Returns the program `vmm-shim` in the directory of this program, if it has the version of this
/// program.
pub(super) fn find() -> Option<ShimProgram> {
    let path = env::current_exe().ok()?.with_file_name("vmm-shim");
    let program = match ShimProgram::at(path) {
        Ok(program) => program,
        Err(ShimProgramError::Missing { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return None;
        }
        Err(error) => {
            tracing::warn!(error = %with_causes(&error), "the daemon is its own shim");
            return None;
        }
    };
    let shown = version_of(&program)?;
    if shown == format!("vmm-shim {}\n", vmm_shim::VERSION).as_bytes() {
        return Some(program);
    }
    tracing::warn!(
        program = %program.path().display(),
        shown = %String::from_utf8_lossy(&shown).trim_end(),
        needed = vmm_shim::VERSION,
        "vmm-shim has another version; the daemon is its own shim, which starts more slowly"
    );
    None
}

/// Returns what `vmm-shim --version` prints.
fn version_of(program: &ShimProgram) -> Option<Vec<u8>> {
    match program.output(["--version"]) {
        Ok(output) => Some(output.stdout),
        Err(error) => {
            tracing::warn!(error = %with_causes(&error), "cannot run vmm-shim; the daemon is its own shim");
            None
        }
    }
}
