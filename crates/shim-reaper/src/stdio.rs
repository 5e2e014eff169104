use std::io;

use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::runtime::Handle;

use crate::handle::ShimHandle;
use crate::pipes::Pipes;

impl ShimHandle {
    /// Takes the writing end of the shim's stdin. Returns `None` if stdin is not piped, or is
    /// already taken.
    ///
    /// Awaiting the handle does not close the pipe. If the shim reads stdin to the end, take the
    /// pipe and drop it.
    ///
    /// The tokio runtime of the caller drives the pipe, or that of the reaper if the caller is not in one. If
    /// neither can, for example because no descriptor is free, this logs the error, closes the pipe and
    /// returns `None`.
    ///
    /// # Panics
    ///
    /// tokio panics if its runtime in which this is called has no I/O driver
    /// (`tokio::runtime::Builder::enable_io`).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::Stdio;
    /// # let reaper = ShimReaper::start();
    ///
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// let mut command = Command::new("cat");
    /// command.stdin(Stdio::piped()).stdout(Stdio::piped());
    /// let shim = reaper.spawn(command)?;
    /// shim.take_stdin().expect("it is piped").write_all(b"hello").await?; // And drops it.
    /// let mut text = String::new();
    /// shim.take_stdout().expect("it is piped").read_to_string(&mut text).await?;
    /// assert_eq!(text, "hello");
    /// # Ok(())
    /// # }
    /// ```
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.take(|pipes| pipes.stdin.take(), ChildStdin::from_std)
    }

    /// Takes the reading end of the shim's stdout. Returns `None` if stdout is not piped, or is
    /// already taken. A tokio runtime drives it, and it can panic, as for [`take_stdin`](Self::take_stdin).
    ///
    /// Read it while the shim runs: a shim that writes more than the pipe holds (64 KiB, `pipe(7)`) waits
    /// for a reader.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::Stdio;
    /// # let reaper = ShimReaper::start();
    ///
    /// use tokio::io::AsyncReadExt;
    ///
    /// let mut command = Command::new("sh");
    /// command.args(["-c", "echo hello"]).stdout(Stdio::piped());
    /// let shim = reaper.spawn(command)?;
    /// let mut text = String::new();
    /// shim.take_stdout().expect("it is piped").read_to_string(&mut text).await?;
    /// assert_eq!(text, "hello\n");
    /// # Ok(())
    /// # }
    /// ```
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.take(|pipes| pipes.stdout.take(), ChildStdout::from_std)
    }

    /// Takes the reading end of the shim's stderr. Returns `None` if stderr is not piped, or is
    /// already taken. A tokio runtime drives it, and it can panic, as for [`take_stdin`](Self::take_stdin).
    ///
    /// Read it while the shim runs: a shim that writes more than the pipe holds (64 KiB, `pipe(7)`) waits
    /// for a reader.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::Stdio;
    /// # let reaper = ShimReaper::start();
    ///
    /// use tokio::io::AsyncReadExt;
    ///
    /// let mut command = Command::new("sh");
    /// command.args(["-c", "echo hello >&2"]).stderr(Stdio::piped());
    /// let shim = reaper.spawn(command)?;
    /// let mut text = String::new();
    /// shim.take_stderr().expect("it is piped").read_to_string(&mut text).await?;
    /// assert_eq!(text, "hello\n");
    /// # Ok(())
    /// # }
    /// ```
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.take(|pipes| pipes.stderr.take(), ChildStderr::from_std)
    }

    fn take<S, T>(
        &self,
        take: impl FnOnce(&mut Pipes) -> Option<S>,
        convert: impl FnOnce(S) -> io::Result<T>,
    ) -> Option<T> {
        let pipe = take(&mut self.guard.as_ref()?.pipes())?;
        let runtime = Handle::try_current().or_else(|_| self.worker.runtime());
        match runtime.and_then(|runtime| {
            let _entered = runtime.enter();
            convert(pipe)
        }) {
            Ok(pipe) => Some(pipe),
            Err(error) => {
                tracing::warn!(pid = self.id(), %error, "cannot poll a pipe of the shim");
                None
            }
        }
    }
}
