use std::io;
use std::os::fd::OwnedFd;
use std::process::{self, ChildStderr, ChildStdin, ChildStdout};

use tokio::process::{
    ChildStderr as TokioStderr, ChildStdin as TokioStdin, ChildStdout as TokioStdout,
};

/// The parent's ends of the standard streams of a child that are pipes.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

impl Pipes {
    pub(crate) fn is_empty(&self) -> bool {
        self.stdin.is_none() && self.stdout.is_none() && self.stderr.is_none()
    }
}

impl From<pidfd_spawn::Child> for Pipes {
    fn from(child: pidfd_spawn::Child) -> Self {
        Self {
            stdin: child.stdin,
            stdout: child.stdout,
            stderr: child.stderr,
        }
    }
}

impl From<process::Child> for Pipes {
    fn from(child: process::Child) -> Self {
        Self {
            stdin: child.stdin,
            stdout: child.stdout,
            stderr: child.stderr,
        }
    }
}

impl From<(Option<TokioStdin>, Option<TokioStdout>, Option<TokioStderr>)> for Pipes {
    fn from(
        (stdin, stdout, stderr): (Option<TokioStdin>, Option<TokioStdout>, Option<TokioStderr>),
    ) -> Self {
        Self {
            stdin: from_tokio(stdin.map(TokioStdin::into_owned_fd)),
            stdout: from_tokio(stdout.map(TokioStdout::into_owned_fd)),
            stderr: from_tokio(stderr.map(TokioStderr::into_owned_fd)),
        }
    }
}

fn from_tokio<T: From<OwnedFd>>(pipe: Option<io::Result<OwnedFd>>) -> Option<T> {
    match pipe? {
        Ok(pipe) => Some(pipe.into()),
        Err(error) => {
            tracing::warn!(%error, "cannot take a pipe of the child from tokio");
            None
        }
    }
}
