//! The program of the shims: `vmm-shim`, which is smaller than the daemon and so starts faster, or
//! the daemon itself.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmm_shim::{Qemu, Shim};

/// Returns the shim that this program can be. `vmm-shim` has the same engines.
pub(crate) fn shim() -> Shim {
    Shim::new().engine(Qemu)
}

/// Returns the program `vmm-shim` in the directory of this program, if it has the version of this
/// program.
pub(super) fn find() -> Option<PathBuf> {
    let program = env::current_exe().ok()?.with_file_name("vmm-shim");
    if !program.is_file() {
        return None;
    }
    let shown = version_of(&program)?;
    if shown == format!("vmm-shim {}\n", vmm_shim::VERSION).as_bytes() {
        return Some(program);
    }
    tracing::warn!(
        program = %program.display(),
        shown = %String::from_utf8_lossy(&shown).trim_end(),
        needed = vmm_shim::VERSION,
        "vmm-shim has another version; the daemon is its own shim, which starts more slowly"
    );
    None
}

/// Returns what `vmm-shim --version` prints.
fn version_of(program: &Path) -> Option<Vec<u8>> {
    let mut command = Command::new(program);
    // Without the secrets in the environment.
    command.arg("--version").env_clear().stdin(Stdio::null());
    match command.output() {
        Ok(output) => Some(output.stdout),
        Err(error) => {
            tracing::warn!(program = %program.display(), %error, "cannot run vmm-shim");
            None
        }
    }
}
