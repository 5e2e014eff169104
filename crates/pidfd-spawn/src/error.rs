use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;

use crate::c_strings::NulByte;

/// A step of [`Command::spawn`](crate::Command::spawn), in the order in which they happen;
/// [`SpawnError::step`] returns the one that failed.
///
/// The parent takes the first three steps, the child the others. [`Display`](fmt::Display) writes what
/// a step does:
///
/// ```
/// use pidfd_spawn::Step;
///
/// assert_eq!(Step::CurrentDir.to_string(), "change the working directory");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// The program, the arguments, the environment and the paths become C strings. Fails with
    /// [`io::ErrorKind::InvalidInput`] if one of them contains a NUL byte.
    Arguments,
    /// The pipes of [`Stdio::piped`](crate::Stdio::piped), `/dev/null`, and the descriptors that
    /// must be duplicated are opened.
    Stdio,
    /// The process is created, and before it the sockets that a [fork](crate#when-the-child-is-forked)
    /// needs.
    Clone,
    /// The pidfd of the process is opened. This is part of [`Clone`](Self::Clone) unless the child is
    /// [forked](crate#when-the-child-is-forked).
    Pidfd,
    /// Signal dispositions and the signal mask are reset.
    Signals,
    /// The child joins its control group.
    Cgroup,
    /// The child joins its network namespace.
    NetworkNamespace,
    /// Standard streams and other descriptors get their numbers in the child, which leaves the table of its
    /// parent before all other steps if it [inherits no descriptors](crate::Command::inherit_descriptors).
    Descriptors,
    /// A resource limit is set.
    Rlimit,
    /// The CPU affinity is set.
    Affinity,
    /// The nice value is set.
    Nice,
    /// The supplementary groups are set.
    Groups,
    /// The group ID is set.
    Gid,
    /// The user ID is set.
    Uid,
    /// The child changes its working directory.
    CurrentDir,
    /// The child joins or creates a process group.
    ProcessGroup,
    /// The child creates a session.
    Setsid,
    /// The stdin becomes the controlling terminal of the session.
    ControllingTerminal,
    /// The attribute `no_new_privs` is set.
    NoNewPrivs,
    /// The rules of Landlock are applied.
    Landlock,
    /// The signal that the child gets when its parent dies is set.
    ParentDeathSignal,
    /// A closure of [`pre_exec`](crate::Command::pre_exec) runs.
    PreExec,
    /// The child executes the program.
    Exec,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arguments => "convert the arguments to C strings",
            Self::Stdio => "open the standard streams",
            Self::Clone => "create a process",
            Self::Pidfd => "open the pidfd",
            Self::Signals => "reset the signals",
            Self::Cgroup => "join the control group",
            Self::NetworkNamespace => "join the network namespace",
            Self::Descriptors => "place the descriptors",
            Self::Rlimit => "set a resource limit",
            Self::Affinity => "set the CPU affinity",
            Self::Nice => "set the nice value",
            Self::Groups => "set the supplementary groups",
            Self::Gid => "set the group ID",
            Self::Uid => "set the user ID",
            Self::CurrentDir => "change the working directory",
            Self::ProcessGroup => "set the process group",
            Self::Setsid => "create a session",
            Self::ControllingTerminal => "set the controlling terminal",
            Self::NoNewPrivs => "set no_new_privs",
            Self::Landlock => "apply the rules of Landlock",
            Self::ParentDeathSignal => "set the parent death signal",
            Self::PreExec => "run a pre_exec closure",
            Self::Exec => "execute the program",
        })
    }
}

/// The error of a failed spawn. No child is left: it was never created, or has been reaped.
///
/// It names the program and the [step](Step) that failed; the error of the operating system is its
/// [`source`](Error::source).
///
/// It converts to an [`io::Error`] of the same kind, so that `?` works in code that returns
/// [`io::Result`]. [`io::Error::get_ref`] of that error returns this one.
///
/// ```
/// use pidfd_spawn::{Command, Step};
///
/// let error = Command::new("true").current_dir("/nonexistent").spawn().unwrap_err();
/// assert_eq!(error.step(), Step::CurrentDir);
/// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
/// assert_eq!(error.to_string(), "cannot spawn \"true\": cannot change the working directory");
/// ```
#[derive(Debug)]
pub struct SpawnError {
    program: OsString,
    step: Step,
    source: io::Error,
}

impl SpawnError {
    pub(crate) fn new(program: &OsStr, cause: Cause) -> Self {
        Self {
            program: program.to_owned(),
            step: cause.step,
            source: cause.source,
        }
    }

    /// Returns the step that failed.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Step};
    /// let error = Command::new("/nonexistent").spawn().unwrap_err();
    /// assert_eq!(error.step(), Step::Exec);
    /// ```
    pub fn step(&self) -> Step {
        self.step
    }

    /// Returns the program of the command, as it was given to [`Command::new`](crate::Command::new).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let error = Command::new("/nonexistent").spawn().unwrap_err();
    /// assert_eq!(error.program(), "/nonexistent");
    /// ```
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// Returns the kind of the error of the operating system.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let error = Command::new("/nonexistent").spawn().unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    /// ```
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns the error number. Returns `None` only for [`Step::Arguments`], which makes no system call.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let error = Command::new("/nonexistent").spawn().unwrap_err();
    /// assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    /// ```
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot spawn {:?}: cannot {}", self.program, self.step)
    }
}

impl Error for SpawnError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

impl From<SpawnError> for io::Error {
    fn from(error: SpawnError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// What a [`SpawnError`] reports, without the program.
#[derive(Debug)]
pub(crate) struct Cause {
    step: Step,
    source: io::Error,
}

impl Cause {
    pub(crate) fn new(step: Step, source: io::Error) -> Self {
        Self { step, source }
    }
}

impl From<NulByte> for Cause {
    fn from(_: NulByte) -> Self {
        let message =
            "the program, an argument, an environment variable or a path contains a NUL byte";
        Self::new(
            Step::Arguments,
            io::Error::new(io::ErrorKind::InvalidInput, message),
        )
    }
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        Self::new(failure.step, io::Error::from_raw_os_error(failure.errno))
    }
}

/// A failed step as the child reports it: plain data, which needs no allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
}

impl Failure {
    /// The failure of a system call that the parent makes.
    pub(crate) fn of(step: Step, error: &io::Error) -> Self {
        Self {
            step,
            errno: errno_of(error),
        }
    }
}

/// Returns the error number, or `EINVAL` for an error that is not that of a system call.
pub(crate) fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}
