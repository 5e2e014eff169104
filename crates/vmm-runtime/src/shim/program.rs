use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use nix::unistd::{AccessFlags, access};
use rustix::fs::{Mode, OFlags};
use shim_reaper::Command;
use vmm_protocol::{ARGV0, Invocation};

use crate::ShimProgramError;

/// The program that shims execute: the current program, or another one built with `vmm_shim`.
/// [`RuntimeOptions::shim_program`](crate::RuntimeOptions::shim_program) sets it.
///
/// Remains the same program after an upgrade replaces or deletes its file: it is not opened by its
/// path again. A file whose contents are overwritten in place is not protected.
#[derive(Clone, Debug)]
pub struct ShimProgram {
    path: PathBuf,
    file: Option<Arc<OwnedFd>>,
    private_env: Vec<OsString>,
}

const THIS_PROGRAM: &str = "/proc/self/exe";

/// The number under which a shim gets the file of its program, to execute it.
const PROGRAM_FD: RawFd = 3;

impl ShimProgram {
    /// Uses the current program.
    ///
    /// # Errors
    ///
    /// If the program has not called `vmm_shim::run_if_shim`: a copy of it would not run as a shim.
    pub fn this() -> Result<Self, ShimProgramError> {
        if vmm_protocol::can_be_shim() {
            Ok(Self::new(THIS_PROGRAM.into(), None))
        } else {
            Err(ShimProgramError::NotAShimProgram)
        }
    }

    /// Uses another program, such as `vmm-shim`.
    ///
    /// # Errors
    ///
    /// If the file does not exist or is not executable, or if `/proc` is not mounted.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, ShimProgramError> {
        let path = path.into();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => file,
            Err(error) => {
                let source = error.into();
                return Err(ShimProgramError::Missing { path, source });
            }
        };
        let opened = fd_path(file.as_raw_fd());
        let is_file = match fs::metadata(&opened) {
            // The file is open.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ShimProgramError::NoProcfs { path });
            }
            found => found.is_ok_and(|found| found.is_file()),
        };
        if is_file && access(&opened, AccessFlags::X_OK).is_ok() {
            Ok(Self::new(path, Some(file)))
        } else {
            Err(ShimProgramError::NotExecutable { path })
        }
    }

    fn new(path: PathBuf, file: Option<OwnedFd>) -> Self {
        Self {
            path,
            file: file.map(Arc::new),
            private_env: Vec::new(),
        }
    }

    /// Removes these variables from the environment of shims and health checks.
    #[must_use]
    pub fn private_env(mut self, names: Vec<OsString>) -> Self {
        self.private_env = names;
        self
    }

    /// Returns the path of the program, at which there may be another file now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs the program with these arguments, not as a shim, and returns what it prints. It has no
    /// environment variables. Blocks until it has exited.
    ///
    /// Use it to check the version of a program that an upgrade can replace at any time.
    ///
    /// ```
    /// use vmm_runtime::ShimProgram;
    ///
    /// let program = ShimProgram::at("/bin/echo")?;
    /// assert_eq!(program.output(["--check"])?.stdout, b"--check\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the program cannot be executed, or its output cannot be read.
    pub fn output(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<Output> {
        self.bare_command()?.args(args).env_clear().output()
    }

    /// Returns the command of a shim, with its standard streams not yet set.
    ///
    /// # Errors
    ///
    /// If no descriptor is left.
    pub(super) fn command(&self, invocation: &Invocation, dir: &Path) -> io::Result<Command> {
        let mut command = self.bare_command()?;
        // The runtime has several descriptors per box.
        command
            .arg0(ARGV0)
            .args(invocation.args())
            .current_dir(dir)
            .inherit_descriptors(false);
        self.remove_private_env(&mut command);
        Ok(command)
    }

    fn bare_command(&self) -> io::Result<Command> {
        let mut command = Command::new(&self.path);
        if let Some(file) = &self.file {
            command
                .executable(fd_path(PROGRAM_FD))
                .fd(PROGRAM_FD, file.try_clone()?);
        }
        Ok(command)
    }

    /// Removes the private variables from the environment of a command.
    pub(crate) fn remove_private_env(&self, command: &mut Command) {
        for name in &self.private_env {
            command.env_remove(name);
        }
    }
}

/// Returns the path of an open file of the process that uses the path.
fn fd_path(fd: RawFd) -> PathBuf {
    format!("/proc/self/fd/{fd}").into()
}
