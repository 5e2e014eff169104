use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, ChildStdin, ChildStdout};

/// What a standard stream of a child is connected to, as [`std::process::Stdio`].
///
/// Other types that own a descriptor convert by way of [`OwnedFd`].
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

    /// The child inherits the stream of its parent.
    pub fn inherit() -> Self {
        Self::INHERIT
    }

    /// The stream is `/dev/null`.
    pub fn null() -> Self {
        Self::NULL
    }

    /// A new pipe connects the child to its parent, which has the other end in
    /// [`Child`](crate::Child).
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
    /// The stream is what the parent's standard output is at the time of the spawn.
    fn from(_: io::Stdout) -> Self {
        Self(Kind::Stdout)
    }
}

impl From<io::Stderr> for Stdio {
    /// The stream is what the parent's standard error is at the time of the spawn.
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
