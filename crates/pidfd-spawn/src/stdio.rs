use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, ChildStdin, ChildStdout};

/// What a standard stream of a child is connected to, as [`std::process::Stdio`].
///
/// A [`File`], a socket, or a pipe of another child converts into it. Other types that own a descriptor
/// convert through [`OwnedFd`].
///
/// ```
/// use pidfd_spawn::{Command, Stdio};
///
/// // echo hello | cat
/// let mut echo = Command::new("echo").arg("hello").stdout(Stdio::piped()).spawn()?;
/// let pipe = echo.stdout.take().expect("it is a pipe");
/// let output = Command::new("cat").stdin(pipe).output()?;
/// assert_eq!(output.stdout, b"hello\n");
/// echo.wait()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Stdio(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    Inherit,
    Null,
    Piped,
    Fd(OwnedFd),
    Stdout,
    Stderr,
}

impl Stdio {
    pub(crate) const INHERIT: Self = Self(Kind::Inherit);
    pub(crate) const NULL: Self = Self(Kind::Null);
    pub(crate) const PIPED: Self = Self(Kind::Piped);

    /// Makes the child inherit the stream of this process. The default, except for
    /// [`output`](crate::Command::output).
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// let output = Command::new("echo").arg("to the terminal").stdout(Stdio::inherit()).output()?;
    /// assert!(output.stdout.is_empty());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn inherit() -> Self {
        Self::INHERIT
    }

    /// Connects the stream to `/dev/null`.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// let status = Command::new("cat").stdin(Stdio::null()).status()?;
    /// assert!(status.success());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn null() -> Self {
        Self::NULL
    }

    /// Connects the stream to a new pipe, whose other end is in [`Child`](crate::Child).
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// let child = Command::new("echo").arg("hello").stdout(Stdio::piped()).spawn()?;
    /// assert_eq!(child.wait_with_output()?.stdout, b"hello\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn piped() -> Self {
        Self::PIPED
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Fd(fd))
    }
}

impl From<io::Stdout> for Stdio {
    /// Connects the stream to what the standard output of this process is at the time of the spawn.
    fn from(_: io::Stdout) -> Self {
        Self(Kind::Stdout)
    }
}

impl From<io::Stderr> for Stdio {
    /// Connects the stream to what the standard error of this process is at the time of the spawn.
    fn from(_: io::Stderr) -> Self {
        Self(Kind::Stderr)
    }
}

macro_rules! from_owner {
    ($($owner:ty),*) => {$(
        impl From<$owner> for Stdio {
            fn from(owner: $owner) -> Self {
                Self::from(OwnedFd::from(owner))
            }
        }
    )*};
}
from_owner!(
    File,
    UnixStream,
    TcpStream,
    ChildStdin,
    ChildStdout,
    ChildStderr
);
