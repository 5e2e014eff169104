use std::process::{self, ChildStderr, ChildStdin, ChildStdout};

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

impl From<process::Child> for Pipes {
    fn from(child: process::Child) -> Self {
        Self {
            stdin: child.stdin,
            stdout: child.stdout,
            stderr: child.stderr,
        }
    }
}
