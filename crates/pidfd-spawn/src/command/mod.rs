mod attributes;
mod spawn;
mod streams;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::environment::Environment;
use crate::plan::{Attributes, PreExec};
use crate::stdio::Stdio;

/// Builds a child process that is born with a pidfd.
///
/// Methods named as in [`std::process::Command`] and its
/// [`CommandExt`](std::os::unix::process::CommandExt) behave as there. In addition, a command sets the
/// [control group](Self::cgroup), [resource limits](Self::rlimit), [CPU affinity](Self::affinity),
/// [nice value](Self::nice), [`no_new_privs`](Self::no_new_privs), the
/// [parent death signal](Self::parent_death_signal), and
/// [descriptors with chosen numbers](Self::fd).
///
/// A command can be spawned more than once.
///
/// # Differences from `std::process::Command`
///
/// * Streams are [`Stdio`](crate::Stdio)s of this crate, because std does not tell what one of its own is
///   connected to.
/// * Errors are [`SpawnError`](crate::SpawnError)s, which have the failed step.
/// * The child's signal mask is empty, see [`inherit_signal_mask`](Self::inherit_signal_mask).
/// * A file without a format that the kernel knows, such as a script without `#!`, fails with
///   `ENOEXEC`, as with `posix_spawn(3)`. `std` passes it to `/bin/sh` in some cases.
///
/// # Program search
///
/// A program that contains a slash is a path, relative to the child's
/// [working directory](Self::current_dir). Any other name is looked up in the child's `PATH`, as
/// `execvp(3)` does it: directories in which it does not exist are skipped, so are those in which it
/// may not be executed, and `EACCES` is the error if it is found nowhere else. Without `PATH`,
/// `/bin` and `/usr/bin` are searched.
///
/// # Example
///
/// ```
/// use pidfd_spawn::{Command, Resource, Stdio};
///
/// let output = Command::new("sh")
///     .args(["-c", "echo $GREETING; ulimit -n"])
///     .env("GREETING", "hello")
///     .rlimit(Resource::Nofile, 64, 64)
///     .stderr(Stdio::null())
///     .output()?;
/// assert_eq!(output.stdout, b"hello\n64\n");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Command {
    program: OsString,
    arg0: Option<OsString>,
    args: Vec<OsString>,
    environment: Environment,
    current_dir: Option<PathBuf>,
    /// Standard input, output and error.
    streams: [Option<Stdio>; 3],
    descriptors: BTreeMap<RawFd, OwnedFd>,
    attributes: Attributes,
    pre_exec: Vec<PreExec>,
}

impl Command {
    /// Creates a command that runs `program` without arguments, with the environment, the working
    /// directory and the standard streams of this process.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arg0: None,
            args: Vec::new(),
            environment: Environment::default(),
            current_dir: None,
            streams: [None, None, None],
            descriptors: BTreeMap::new(),
            attributes: Attributes::default(),
            pre_exec: Vec::new(),
        }
    }

    /// Appends an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Appends arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets the argument 0, by which the child knows its own name, in place of the program.
    pub fn arg0(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(arg.as_ref().to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.environment.set(key.as_ref(), value.as_ref());
        self
    }

    /// Sets environment variables.
    pub fn envs(
        &mut self,
        vars: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (key, value) in vars {
            self.environment.set(key.as_ref(), value.as_ref());
        }
        self
    }

    /// Removes an environment variable, inherited or set.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.environment.remove(key.as_ref());
        self
    }

    /// Removes all environment variables that were set, and inherits none.
    pub fn env_clear(&mut self) -> &mut Self {
        self.environment.clear();
        self
    }

    /// Sets the working directory.
    ///
    /// The child changes to it with its own user and group, and before it looks for a program with a
    /// relative path.
    pub fn current_dir(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.current_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Sets the standard input. It is inherited by default, and `/dev/null` for
    /// [`output`](Self::output).
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.streams[0] = Some(stdio.into());
        self
    }

    /// Sets the standard output. It is inherited by default, and a pipe for
    /// [`output`](Self::output).
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.streams[1] = Some(stdio.into());
        self
    }

    /// Sets the standard error. It is inherited by default, and a pipe for
    /// [`output`](Self::output).
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.streams[2] = Some(stdio.into());
        self
    }

    /// Returns the program.
    pub fn get_program(&self) -> &OsStr {
        &self.program
    }

    /// Returns the arguments, without argument 0.
    pub fn get_args(&self) -> impl ExactSizeIterator<Item = &OsStr> {
        self.args.iter().map(OsString::as_os_str)
    }

    /// Returns the environment variables that differ from the inherited ones, sorted by name. The
    /// value `None` removes a variable.
    pub fn get_envs(&self) -> impl ExactSizeIterator<Item = (&OsStr, Option<&OsStr>)> {
        self.environment.changes()
    }

    /// Returns the working directory, if it is set.
    pub fn get_current_dir(&self) -> Option<&Path> {
        self.current_dir.as_deref()
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pre_exec` has no representation.
        f.debug_struct("Command")
            .field("program", &self.program)
            .field("arg0", &self.arg0)
            .field("args", &self.args)
            .field("environment", &self.environment)
            .field("current_dir", &self.current_dir)
            .field("streams", &self.streams)
            .field("descriptors", &self.descriptors)
            .field("attributes", &self.attributes)
            .finish_non_exhaustive()
    }
}
