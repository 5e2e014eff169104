use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{AccessFlags, access};
use vmm_protocol::{ARGV0, Invocation};

use crate::ShimProgramError;

/// What shims run: this very program, or another that is made from `vmm_shim`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimProgram {
    path: PathBuf,
    private_env: Vec<OsString>,
}

/// Still the same program after its file has been replaced, or deleted, by an upgrade.
const THIS_PROGRAM: &str = "/proc/self/exe";

impl ShimProgram {
    /// This very program.
    ///
    /// # Errors
    ///
    /// If it has not called [`vmm_shim::run_if_shim`]: a copy of it would not know that it is to
    /// be a shim.
    pub fn this() -> Result<Self, ShimProgramError> {
        if vmm_protocol::can_be_shim() {
            Ok(Self::of(THIS_PROGRAM.into()))
        } else {
            Err(ShimProgramError::NotAShimProgram)
        }
    }

    /// Another program, such as `vmm-shim`.
    ///
    /// # Errors
    ///
    /// If there is none, or it may not be executed.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, ShimProgramError> {
        let path = path.into();
        let found = match path.canonicalize() {
            Ok(found) => found,
            Err(source) => return Err(ShimProgramError::Missing { path, source }),
        };
        if found.is_file() && access(&found, AccessFlags::X_OK).is_ok() {
            Ok(Self::of(found))
        } else {
            Err(ShimProgramError::NotExecutable { path })
        }
    }

    fn of(path: PathBuf) -> Self {
        Self {
            path,
            private_env: Vec::new(),
        }
    }

    /// Without these variables of this process's environment.
    #[must_use]
    pub fn private_env(mut self, names: Vec<OsString>) -> Self {
        self.private_env = names;
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that dies with this process, as a payload does with its shim. More exactly with
    /// the thread that starts it, `prctl(2)`.
    pub(crate) fn bound_command(&self, command: &[String]) -> Command {
        self.invoke(&Invocation::bound_to_this_process(command))
    }

    /// The shim of a box, without its standard streams.
    pub(super) fn command(&self, id: &str, dir: &Path) -> Command {
        let invocation = Invocation::Box {
            id: id.to_owned(),
            dir: dir.to_owned(),
        };
        let mut command = self.invoke(&invocation);
        command.current_dir(dir);
        command
    }

    fn invoke(&self, invocation: &Invocation) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(ARGV0).args(invocation.args());
        for name in &self.private_env {
            command.env_remove(name);
        }
        command
    }
}
