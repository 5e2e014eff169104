mod attributes;
mod confinement;
mod descriptors;
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

/// Builds a child process and spawns it together with its pidfd.
///
/// Methods that have the name of a method of [`std::process::Command`] or of its
/// [`CommandExt`](std::os::unix::process::CommandExt) do the same. std has no stable method for these:
///
/// | to | use |
/// |---|---|
/// | create the child in a control group | [`cgroup`](Self::cgroup) |
/// | limit its resources, its CPUs, its priority | [`rlimit`](Self::rlimit), [`affinity`](Self::affinity), [`nice`](Self::nice) |
/// | give it a descriptor under a chosen number, and no others | [`fd`](Self::fd), [`inherit_descriptors`](Self::inherit_descriptors) |
/// | set its supplementary groups, start a session with a terminal | [`groups`](Self::groups), [`setsid`](Self::setsid), [`controlling_terminal`](Self::controlling_terminal) |
/// | forbid that it gains privileges, restrict what it can open | [`no_new_privs`](Self::no_new_privs), [`landlock`](Self::landlock) |
/// | move it to a network namespace | [`network_namespace`](Self::network_namespace) |
/// | execute a file that is open, and name another one in errors | [`executable`](Self::executable) |
/// | end it with the thread that spawned it | [`parent_death_signal`](Self::parent_death_signal) |
/// | choose the signals that it blocks and ignores | [`inherit_signal_mask`](Self::inherit_signal_mask), [`reset_ignored_signals`](Self::reset_ignored_signals) |
///
/// The child takes the steps in the order of [`Step`](crate::Step), whatever the order of the calls. A
/// command can be spawned more than once.
///
/// # Differences from `std::process::Command`
///
/// * Streams are [`Stdio`]s of this crate: the `Stdio` of std does not show what it is
///   connected to.
/// * Errors are [`SpawnError`](crate::SpawnError)s, which name the step that failed.
/// * The child blocks no signals, see [`inherit_signal_mask`](Self::inherit_signal_mask).
/// * A file that is not in a format that the kernel executes, such as a script without `#!`, fails with
///   `ENOEXEC`, as with `posix_spawn(3)`. std passes it to `/bin/sh` in some cases.
///
/// # Program search
///
/// A program with a slash in its name is a path, relative to the
/// [working directory](Self::current_dir) of the child. Any other name is searched in the `PATH` of the
/// child, as `execvp(3)` does it: the search goes on where the file does not exist, and where the child
/// may not execute it. If it finds no other file, the error of the latter is `EACCES`. Without `PATH`,
/// it searches `/bin` and `/usr/bin`.
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
    /// What the child executes in place of the program.
    executable: Option<OsString>,
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
    ///
    /// [Program search](Self#program-search) describes where the child looks for it.
    ///
    /// ```
    /// use pidfd_spawn::Command;
    ///
    /// let status = Command::new("true").status()?;
    /// assert!(status.success());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            executable: None,
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

    /// Appends an argument. The child gets it as it is: no shell splits or expands it.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("echo").arg("-n").arg("$HOME is *").output()?;
    /// assert_eq!(output.stdout, b"$HOME is *");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Appends arguments, as [`arg`](Self::arg) does for each.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("echo").args(["a", "b"]).output()?;
    /// assert_eq!(output.stdout, b"a b\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets argument 0, the name under which the program knows itself. The default is the program as it
    /// was given to [`new`](Self::new).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("sh").arg0("-my-shell").args(["-c", "echo $0"]).output()?;
    /// assert_eq!(output.stdout, b"-my-shell\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn arg0(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(arg.as_ref().to_owned());
        self
    }

    /// Sets what the child executes in place of the program, such as a file that is open. It is
    /// [searched](Self#program-search) as a program is. Errors name the program all the same, and it stays the
    /// default of [`arg0`](Self::arg0).
    ///
    /// ```
    /// # use std::fs::File;
    /// # use pidfd_spawn::Command;
    /// let echo = File::open("/bin/echo")?;
    /// // Also if another file has this path by now.
    /// let output = Command::new("/bin/echo")
    ///     .executable("/proc/self/fd/7")
    ///     .fd(7, echo)
    ///     .arg("hello")
    ///     .output()?;
    /// assert_eq!(output.stdout, b"hello\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn executable(&mut self, program: impl AsRef<OsStr>) -> &mut Self {
        self.executable = Some(program.as_ref().to_owned());
        self
    }

    /// Sets an environment variable.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("printenv").arg("COLOR").env("COLOR", "blue").output()?;
    /// assert_eq!(output.stdout, b"blue\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.environment.set(key.as_ref(), value.as_ref());
        self
    }

    /// Sets environment variables.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("printenv").env_clear().envs([("A", "1"), ("B", "2")]).output()?;
    /// assert_eq!(output.stdout, b"A=1\nB=2\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
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
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let status = Command::new("printenv").arg("HOME").env_remove("HOME").status()?;
    /// assert!(!status.success());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.environment.remove(key.as_ref());
        self
    }

    /// Removes all environment variables that were set, and makes the child inherit none. It then has no
    /// `PATH` either: see [Program search](Self#program-search).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("printenv").env_clear().env("A", "1").output()?;
    /// assert_eq!(output.stdout, b"A=1\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn env_clear(&mut self) -> &mut Self {
        self.environment.clear();
        self
    }

    /// Sets the working directory.
    ///
    /// The child changes to it with its own user and group, and before it looks for a program with a
    /// relative path.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("pwd").current_dir("/").output()?;
    /// assert_eq!(output.stdout, b"/\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn current_dir(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.current_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Sets the standard input. By default the child inherits it; with [`output`](Self::output) it is
    /// `/dev/null`.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// use std::io::Write;
    ///
    /// let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    /// child.stdin.take().expect("it is a pipe").write_all(b"hello")?;
    /// assert_eq!(child.wait_with_output()?.stdout, b"hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.streams[0] = Some(stdio.into());
        self
    }

    /// Sets the standard output. By default the child inherits it; with [`output`](Self::output) it is a
    /// pipe.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// let status = Command::new("echo").arg("hello").stdout(Stdio::null()).status()?;
    /// assert!(status.success());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.streams[1] = Some(stdio.into());
        self
    }

    /// Sets the standard error. By default the child inherits it; with [`output`](Self::output) it is a
    /// pipe.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// let log = std::fs::File::create("/dev/null")?;
    /// let status = Command::new("ls").arg("/nonexistent").stderr(log).status()?;
    /// assert!(!status.success());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.streams[2] = Some(stdio.into());
        self
    }

    /// Returns the program that was given to [`new`](Self::new).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// assert_eq!(Command::new("true").get_program(), "true");
    /// ```
    pub fn get_program(&self) -> &OsStr {
        &self.program
    }

    /// Returns the arguments, without argument 0.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut command = Command::new("echo");
    /// command.args(["a", "b"]);
    /// assert!(command.get_args().eq(["a", "b"]));
    /// ```
    pub fn get_args(&self) -> impl ExactSizeIterator<Item = &OsStr> {
        self.args.iter().map(OsString::as_os_str)
    }

    /// Returns the environment variables that differ from the inherited ones, sorted by name. The value
    /// `None` removes a variable. The variables that [`env_clear`](Self::env_clear) removes are not listed.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut command = Command::new("true");
    /// command.env("B", "2").env_remove("A");
    /// let envs: Vec<_> = command.get_envs().collect();
    /// assert_eq!(envs, [("A".as_ref(), None), ("B".as_ref(), Some("2".as_ref()))]);
    /// ```
    pub fn get_envs(&self) -> impl ExactSizeIterator<Item = (&OsStr, Option<&OsStr>)> {
        self.environment.changes()
    }

    /// Returns the working directory, if it is set.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut command = Command::new("true");
    /// assert_eq!(command.get_current_dir(), None);
    /// command.current_dir("/");
    /// assert_eq!(command.get_current_dir(), Some("/".as_ref()));
    /// ```
    pub fn get_current_dir(&self) -> Option<&Path> {
        self.current_dir.as_deref()
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pre_exec` has no representation.
        f.debug_struct("Command")
            .field("program", &self.program)
            .field("executable", &self.executable)
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
