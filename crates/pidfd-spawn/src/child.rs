use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus, Output};

use crate::sys;

/// The parent's ends of the standard streams that are pipes.
pub(crate) type Streams = [Option<OwnedFd>; 3];

/// A child process, identified by its pidfd; [`Command::spawn`](crate::Command::spawn) returns it.
///
/// All operations use the pidfd, so that they never act on another process to which the kernel has
/// given the same pid.
///
/// Wait for the child with one of the methods, or it stays a zombie: as with [`std::process::Child`],
/// dropping this value neither kills the child nor waits for it.
///
/// ```
/// use pidfd_spawn::Command;
///
/// let mut child = Command::new("sleep").arg("1000").spawn()?;
/// assert_eq!(child.try_wait()?, None);
/// child.kill()?;
/// assert!(!child.wait()?.success());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Other waits
///
/// Other code may reap the child: a thread of this process that waits for any child, or the kernel where
/// this process ignores SIGCHLD. From Linux 6.15 on, the waits of this type return the exit status all
/// the same. On an older kernel they fail with `ECHILD`.
#[derive(Debug)]
pub struct Child {
    /// The pipe to the standard input, if that is [`Stdio::piped`](crate::Stdio::piped).
    pub stdin: Option<ChildStdin>,
    /// The pipe from the standard output, if that is [`Stdio::piped`](crate::Stdio::piped).
    pub stdout: Option<ChildStdout>,
    /// The pipe from the standard error, if that is [`Stdio::piped`](crate::Stdio::piped).
    pub stderr: Option<ChildStderr>,
    pid: u32,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

/// The parts of a [`Child`]; [`Child::into_parts`] returns them.
#[derive(Debug)]
#[non_exhaustive]
pub struct ChildParts {
    /// The pid.
    pub pid: u32,
    /// The pidfd, which is close-on-exec.
    pub pidfd: OwnedFd,
    /// The pipe to the standard input, if there is one.
    pub stdin: Option<ChildStdin>,
    /// The pipe from the standard output, if there is one.
    pub stdout: Option<ChildStdout>,
    /// The pipe from the standard error, if there is one.
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

    /// Returns the pid. The kernel may give it to another process once the child has been reaped; signal the
    /// child with [`send_signal`](Self::send_signal).
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut child = Command::new("true").spawn()?;
    /// println!("pid {}", child.id());
    /// # child.wait()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Returns the pidfd, for example to poll it in an event loop: it is readable once the child has
    /// exited.
    ///
    /// Leave it in blocking mode: otherwise [`wait`](Self::wait) fails with `EAGAIN` while the child runs.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// use std::os::fd::AsRawFd;
    ///
    /// let mut child = Command::new("true").spawn()?;
    /// let mut polled = libc::pollfd { fd: child.pidfd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    /// // SAFETY: the pointer is valid for one element.
    /// assert_eq!(unsafe { libc::poll(&raw mut polled, 1, -1) }, 1);
    /// assert!(child.try_wait()?.is_some_and(|status| status.success()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Converts the child to its pidfd, for code that waits for it in another way. Closes the pipes to its
    /// standard streams; [`into_parts`](Self::into_parts) keeps them.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let pidfd = Command::new("true").spawn()?.into_pidfd();
    /// # let id = std::os::fd::AsRawFd::as_raw_fd(&pidfd) as libc::id_t;
    /// # // SAFETY: zeroed memory is a valid siginfo_t, and the pointer is valid.
    /// # let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    /// # assert_eq!(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) }, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// Converts the child to its pid, its pidfd and its pipes, for code that waits for it in another way.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// use std::io::Read;
    ///
    /// let mut command = Command::new("echo");
    /// let parts = command.arg("hello").stdout(Stdio::piped()).spawn()?.into_parts();
    /// let mut text = String::new();
    /// parts.stdout.expect("it is a pipe").read_to_string(&mut text)?;
    /// assert_eq!(text, "hello\n");
    /// // Now wait for `parts.pidfd`.
    /// # let id = std::os::fd::AsRawFd::as_raw_fd(&parts.pidfd) as libc::id_t;
    /// # // SAFETY: zeroed memory is a valid siginfo_t, and the pointer is valid.
    /// # let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    /// # assert_eq!(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) }, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_parts(self) -> ChildParts {
        ChildParts {
            pid: self.pid,
            pidfd: self.pidfd,
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }

    /// Sends SIGKILL to the child, and does not wait for its end. Does nothing if the child has exited.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// use std::os::unix::process::ExitStatusExt;
    ///
    /// let mut child = Command::new("sleep").arg("1000").spawn()?;
    /// child.kill()?;
    /// assert_eq!(child.wait()?.signal(), Some(libc::SIGKILL));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails with `EPERM` if the child runs as another user, such as a child that executes `sudo`, and
    /// this process lacks the privilege (`CAP_KILL`) to signal it: `kill(2)`.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        match self.send_signal(libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    /// Sends the signal with this number to the child. It has no effect on a zombie.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// use std::os::unix::process::ExitStatusExt;
    ///
    /// let mut child = Command::new("sleep").arg("1000").spawn()?;
    /// child.send_signal(libc::SIGTERM)?;
    /// assert_eq!(child.wait()?.signal(), Some(libc::SIGTERM));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails with `ESRCH` if the child has been reaped, with `EINVAL` if the number is not that of a signal,
    /// and with `EPERM` as for [`kill`](Self::kill) (`pidfd_send_signal(2)`).
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        sys::pidfd_send_signal(self.pidfd(), signal, 0)
    }

    /// Waits for the child to exit, reaps it, and returns its exit status. Later calls return the same
    /// status.
    ///
    /// It first closes [`stdin`](Self::stdin), so that a child that reads its standard input to the end can
    /// exit. Standard output and standard error are not read: a child that writes more than a pipe holds
    /// (64 KiB, `pipe(7)`) does not exit. Use [`wait_with_output`](Self::wait_with_output) for it.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn()?;
    /// assert_eq!(child.wait()?.code(), Some(3));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails with `ECHILD` if other code has reaped the child and the kernel does not report its status: see
    /// [Other waits](Self#other-waits). Fails with `EAGAIN` if the [pidfd](Self::pidfd) is in non-blocking
    /// mode and the child runs.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            self.status = sys::wait(self.pidfd.as_fd(), sys::Wait::Blocking)?;
        }
    }

    /// Reaps the child if it has exited, and returns its exit status. Returns `None` if it has not. Unlike
    /// [`wait`](Self::wait), it leaves [`stdin`](Self::stdin) open.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut child = Command::new("sleep").arg("1000").spawn()?;
    /// assert_eq!(child.try_wait()?, None);
    /// # child.kill()?;
    /// # child.wait()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails with `ECHILD` as for [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = sys::wait(self.pidfd.as_fd(), sys::Wait::NonBlocking)?;
        }
        Ok(self.status)
    }

    /// Waits for the child like [`wait`](Self::wait), and reads its standard output and standard error to
    /// their ends where they are [pipes](crate::Stdio::piped), so that it never waits for a full pipe.
    ///
    /// It returns when the child has exited *and* every process that has inherited a pipe has closed it.
    ///
    /// ```
    /// # use pidfd_spawn::{Command, Stdio};
    /// let child = Command::new("echo").arg("hello").stdout(Stdio::piped()).spawn()?;
    /// assert_eq!(child.wait_with_output()?.stdout, b"hello\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait). Fails also with the error of reading a pipe; the child is then not
    /// waited for.
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

/// Reads both pipes to their ends, each time the one that has data, so that the child never waits
/// for a full one.
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
