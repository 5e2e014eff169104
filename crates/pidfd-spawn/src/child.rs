use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus, Output};

use crate::sys;

/// The parent's ends of the standard streams that are pipes.
pub(crate) type Streams = [Option<OwnedFd>; 3];

/// A child process, identified by its pidfd.
///
/// Every operation goes through the pidfd, so none acts on another process that got a recycled pid.
/// The child must be waited for, or it stays a zombie: dropping this neither kills it nor waits for
/// it, as with [`std::process::Child`].
///
/// # Other waits
///
/// Other code in this process may reap the child: a thread that waits for every child, or the kernel
/// itself where SIGCHLD is ignored. On Linux 6.15 and later the waits of this type return the true
/// exit status all the same. On an older kernel they fail with `ECHILD`.
#[derive(Debug)]
pub struct Child {
    /// The pipe to the standard input, with [`Stdio::piped`](crate::Stdio::piped).
    pub stdin: Option<ChildStdin>,
    /// The pipe from the standard output, with [`Stdio::piped`](crate::Stdio::piped).
    pub stdout: Option<ChildStdout>,
    /// The pipe from the standard error, with [`Stdio::piped`](crate::Stdio::piped).
    pub stderr: Option<ChildStderr>,
    pid: u32,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

/// What a [`Child`] consists of.
#[derive(Debug)]
#[non_exhaustive]
pub struct ChildParts {
    /// The process ID.
    pub pid: u32,
    /// The pidfd, which is close-on-exec.
    pub pidfd: OwnedFd,
    /// The pipe to the standard input.
    pub stdin: Option<ChildStdin>,
    /// The pipe from the standard output.
    pub stdout: Option<ChildStdout>,
    /// The pipe from the standard error.
    pub stderr: Option<ChildStderr>,
}

impl Child {
    pub(crate) fn new(pid: u32, pidfd: OwnedFd, [stdin, stdout, stderr]: Streams) -> Self {
        Self {
            stdin: stdin.map(ChildStdin::from),
            stdout: stdout.map(ChildStdout::from),
            stderr: stderr.map(ChildStderr::from),
            pid,
            pidfd,
            status: None,
        }
    }

    /// Returns the process ID. It may be recycled once the child has been waited for.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Returns the pidfd. It is readable once the child has exited.
    ///
    /// Leave it in blocking mode: [`wait`](Self::wait) fails with `EAGAIN` otherwise.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Turns the child into its pidfd. Closes the pipes to its standard streams.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// Takes the child apart, for code that waits for it in another way.
    pub fn into_parts(self) -> ChildParts {
        ChildParts {
            pid: self.pid,
            pidfd: self.pidfd,
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }

    /// Kills the child with SIGKILL. Succeeds if it has exited already.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        match self.send_signal(libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    /// Sends a signal to the child. A zombie accepts every signal.
    ///
    /// # Errors
    ///
    /// Fails with `ESRCH` if the child has been reaped.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        sys::send_signal(self.pidfd(), signal)
    }

    /// Waits for the child to exit and reaps it. Closes [`stdin`](Self::stdin) first, so that a
    /// child that reads until the end of its input can exit.
    ///
    /// Later calls return the same status.
    ///
    /// # Errors
    ///
    /// Fails with `ECHILD` if other code has reaped the child and the kernel does not report its
    /// status: see [Other waits](Self#other-waits).
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            self.status = sys::wait(self.pidfd.as_fd(), sys::Wait::Blocking)?;
        }
    }

    /// Reaps the child if it has exited, and returns `None` if not.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = sys::wait(self.pidfd.as_fd(), sys::Wait::NonBlocking)?;
        }
        Ok(self.status)
    }

    /// Waits for the child, while reading all of its standard output and standard error where they
    /// are pipes. Closes [`stdin`](Self::stdin) first.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        match (self.stdout.take(), self.stderr.take()) {
            (None, None) => {}
            (Some(mut out), None) => {
                out.read_to_end(&mut stdout)?;
            }
            (None, Some(mut err)) => {
                err.read_to_end(&mut stderr)?;
            }
            (Some(out), Some(err)) => read_both(out, &mut stdout, err, &mut stderr)?,
        }
        let status = self.wait()?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd()
    }
}

impl From<Child> for OwnedFd {
    fn from(child: Child) -> Self {
        child.into_pidfd()
    }
}

/// Reads both pipes to their ends, whichever has data, so that the child never waits for a full one.
fn read_both(
    mut a: impl Read + AsFd,
    from_a: &mut Vec<u8>,
    mut b: impl Read + AsFd,
    from_b: &mut Vec<u8>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let [a_is_ready, b_is_ready] = sys::poll_readable([a.as_fd(), b.as_fd()])?;
        if a_is_ready && !read_some(&mut a, &mut buffer, from_a)? {
            b.read_to_end(from_b)?;
            return Ok(());
        }
        if b_is_ready && !read_some(&mut b, &mut buffer, from_b)? {
            a.read_to_end(from_a)?;
            return Ok(());
        }
    }
}

/// Makes one read, and returns false at the end of the pipe.
fn read_some(pipe: &mut impl Read, buffer: &mut [u8], data: &mut Vec<u8>) -> io::Result<bool> {
    match pipe.read(buffer) {
        Ok(length) => {
            data.extend(buffer.iter().take(length));
            Ok(length > 0)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error),
    }
}
