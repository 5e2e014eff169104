use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use shim_reaper::Command;
use vmm_protocol::{ARGV0, Invocation};

use crate::ShimProgramError;

/// The program that shims execute: the current program, or another one built with `vmm_shim`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimProgram {
    path: PathBuf,
    private_env: Vec<OsString>,
}

/// Remains the same program after an upgrade replaces or deletes its file.
const THIS_PROGRAM: &str = "/proc/self/exe";

impl ShimProgram {
    /// Uses the current program.
    ///
    /// # Errors
    ///
    /// If the program has not called `vmm_shim::run_if_shim`: a copy of it would not run as a shim.
    pub fn this() -> Result<Self, ShimProgramError> {
        if vmm_protocol::can_be_shim() {
            Ok(Self::new(THIS_PROGRAM.into()))
        } else {
            Err(ShimProgramError::NotAShimProgram)
        }
    }

    /// Uses another program, such as `vmm-shim`.
    ///
    /// # Errors
    ///
    /// If the file does not exist or is not executable.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, ShimProgramError> {
        let path = path.into();
        let found = match path.canonicalize() {
            Ok(found) => found,
            Err(source) => return Err(ShimProgramError::Missing { path, source }),
        };
        if found.is_file() && access(&found, AccessFlags::X_OK).is_ok() {
            Ok(Self::new(found))
        } else {
            Err(ShimProgramError::NotExecutable { path })
        }
    }

    fn new(path: PathBuf) -> Self {
        Self {
            path,
            private_env: Vec::new(),
        }
    }

    /// Removes these variables from the environment of shims and health checks.
    #[must_use]
    pub fn private_env(mut self, names: Vec<OsString>) -> Self {
        self.private_env = names;
        self
    }

    /// Returns the path of the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the command of a shim, with its standard streams not yet set.
    pub(super) fn command(&self, invocation: &Invocation, dir: &Path) -> Command {
        let mut command = Command::new(&self.path);
        // The runtime has several descriptors per box.
        command
            .arg0(ARGV0)
            .args(invocation.args())
            .current_dir(dir)
            .inherit_descriptors(false);
        self.remove_private_env(&mut command);
        command
    }

    /// Removes the private variables from the environment of a command.
    pub(crate) fn remove_private_env(&self, command: &mut Command) {
        for name in &self.private_env {
            command.env_remove(name);
        }
    }
}
