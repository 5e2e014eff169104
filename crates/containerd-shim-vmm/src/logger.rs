//! The logging programs of containerd, which receive the output of a process.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use pidfd_spawn::{Command, Stdio};
use shim_reaper::{ShimHandle, ShimReaper};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::error::ShimError;

/// How long a program may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a program may take after the end of the process, and then after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the logging programs of a pod, and ends them.
#[derive(Debug)]
pub(crate) struct Loggers {
    reaper: ShimReaper,
    namespace: String,
    running: TaskTracker,
}

/// The pipes to a logging program.
#[derive(Debug)]
pub(crate) struct Logger {
    pub(crate) stdout: pipe::Sender,
    pub(crate) stderr: pipe::Sender,
    /// Dropped when the process has ended.
    pub(crate) process_end: DropGuard,
}

impl Loggers {
    pub(crate) fn new(namespace: &str) -> Self {
        Self {
            reaper: ShimReaper::start(),
            namespace: namespace.to_owned(),
            running: TaskTracker::new(),
        }
    }

    /// Starts the program of a URI such as `binary:///usr/bin/logger?key=value`, and waits until it is ready.
    /// As containerd defines it, the arguments are the keys and values, the program reads stdout and stderr
    /// from its descriptors 3 and 4, and closes 5 when it is ready.
    pub(crate) async fn start(&self, uri: &str, container: &str) -> Result<Logger, ShimError> {
        let (program, args) = parse(uri);
        let (logger, handle) = self
            .spawn(&program, args, container)
            .await
            .map_err(ShimError::file("start the logging program", program))?;
        let process_end = CancellationToken::new();
        self.running
            .spawn(supervise(handle, process_end.clone(), END_TIMEOUT));
        let (stdout, stderr) = logger;
        Ok(Logger {
            stdout,
            stderr,
            process_end: process_end.drop_guard(),
        })
    }

    async fn spawn(
        &self,
        program: &Path,
        args: Vec<String>,
        container: &str,
    ) -> io::Result<((pipe::Sender, pipe::Sender), ShimHandle)> {
        let (stdout, logger_stdout) = pipe::pipe()?;
        let (stderr, logger_stderr) = pipe::pipe()?;
        let (logger_ready, mut ready) = pipe::pipe()?;
        let mut command = Command::new(program);
        command
            .args(args)
            .env("CONTAINER_ID", container)
            .env("CONTAINER_NAMESPACE", &self.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .fd(3, logger_stdout.into_blocking_fd()?)
            .fd(4, logger_stderr.into_blocking_fd()?)
            .fd(5, logger_ready.into_blocking_fd()?);
        let handle = self.reaper.spawn(command)?;
        // It is closed, or the program writes to it.
        if timeout(READY_TIMEOUT, ready.read(&mut [0])).await.is_err() {
            let _ = handle.kill().await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(((stdout, stderr), handle))
    }

    /// Waits until all programs have ended. The processes must have ended.
    pub(crate) async fn end(&self) {
        self.running.close();
        self.running.wait().await;
    }
}

/// Ends a program that does not end within this time after its process.
async fn supervise(handle: ShimHandle, process_end: CancellationToken, grace: Duration) {
    tokio::select! {
        _ = handle.wait() => return,
        () = process_end.cancelled() => {}
    }
    if !matches!(handle.wait_timeout(grace).await, Ok(Some(_))) {
        let _ = handle.stop(grace).await;
    }
}

/// Returns the program and the arguments of a URI. The first value of a key counts.
fn parse(uri: &str) -> (PathBuf, Vec<String>) {
    let path = uri.split_once("://").map_or(uri, |(_, path)| path);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
    let mut keys = HashSet::new();
    let args = form_urlencoded::parse(query.as_bytes())
        .filter(|(key, _)| keys.insert(key.clone()))
        .flat_map(|(key, value)| [key.into_owned(), value.into_owned()]);
    let args = args.collect();
    (path.into(), args)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use shim_reaper::Signal;

    use super::*;

    #[test]
    fn a_uri_names_the_program_and_its_arguments() {
        let (program, args) = parse("binary:///opt/my%20logger?dir=/var/a%26b&key&dir=2");
        assert_eq!(program, Path::new("/opt/my logger"));
        assert_eq!(args, ["dir", "/var/a&b", "key", ""]);
        assert_eq!(parse("binary:///logger"), ("/logger".into(), Vec::new()));
    }

    #[tokio::test]
    async fn a_program_that_ignores_the_end_of_its_process_and_sigterm_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("logger");
        let script = "#!/bin/sh\ntrap '' TERM\nexec 5>&-\nwhile :; do sleep 1; done\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let loggers = Loggers::new("test");
        let (_, handle) = loggers.spawn(&program, Vec::new(), "c").await.unwrap();
        let process_end = CancellationToken::new();
        process_end.cancel();
        supervise(handle.clone(), process_end, Duration::from_millis(50)).await;
        assert_eq!(
            handle.wait().await.unwrap().signal(),
            Some(Signal::SIGKILL.as_raw())
        );
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_an_error_that_names_it() {
        let error = Loggers::new("test").start("binary:///no/such", "c").await;
        let error = error.unwrap_err().to_string();
        assert_eq!(error, "cannot start the logging program /no/such");
    }
}
