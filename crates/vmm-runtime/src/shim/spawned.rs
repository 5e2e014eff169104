use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process;
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::{Instant, sleep};
use vmm_protocol::{
    BoxDir, ExitRecord, FileError, InstanceSpec, PidRecord, Report, RuntimeProcess,
    is_resource_exhaustion,
};

use super::{ShimProgram, StartError, ending_of_status, record_matches, terminate};
use crate::process::SIGKILL_TIMEOUT;

/// A spawned shim whose payload is not ready yet. It is registered with the reaper from birth, and
/// is killed if this value is dropped.
///
/// [`ShimController::start`](crate::ShimController::start) performs all steps from here to a
/// [`ShimHandler`](crate::ShimHandler).
#[derive(Debug)]
#[must_use = "a spawned shim is killed when it is dropped"]
pub struct SpawnedShim {
    shim: KillOnDrop,
    dir: BoxDir,
    runtime: RuntimeProcess,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    detached: bool,
    payload_pid: Option<u32>,
}

#[derive(Debug)]
struct KillOnDrop {
    handle: ShimHandle,
    armed: bool,
    /// The pid of the process that spawned it. A drop in a forked child does not kill the shim.
    owner: u32,
}

/// The parts of a [`ShimHandler`](crate::ShimHandler).
pub(super) struct ShimParts {
    pub(super) handle: ShimHandle,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) payload_pid: Option<u32>,
    pub(super) record: PidRecord,
}

/// The runtime's end of a shim's watchdog pipe. An attached shim runs as long as it is held.
///
/// When it is dropped, or the process that holds it dies, the pipe hangs up. The shim then stops
/// its payload, kills it after the grace period, and exits. The descriptor is close-on-exec from
/// its creation, so no other child of the process keeps the pipe open. A child forked without an
/// exec does, but the shim also watches the process itself.
#[derive(Debug)]
pub struct Keepalive(#[expect(dead_code, reason = "held only to be dropped")] OwnedFd);

impl Keepalive {
    fn new(pipe: OwnedFd) -> Self {
        Self(pipe)
    }
}

/// A longer line is not a report.
const MAX_REPORT_BYTES: u64 = 1 << 20;

/// How long a shortage of descriptors may last before a failed start is reported without its record.
const SHORTAGE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl SpawnedShim {
    /// Spawns the shim of the box with the directory `dir`.
    ///
    /// # Errors
    ///
    /// [`StartError::File`] if `shim.stderr` cannot be opened, [`StartError::Spawn`] if the process
    /// cannot be spawned.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the shim is killed and reaped.
    pub async fn spawn(
        reaper: &ShimReaper,
        program: &ShimProgram,
        spec: &InstanceSpec,
        dir: &Path,
    ) -> Result<Self, StartError> {
        let runtime = RuntimeProcess::this().map_err(StartError::Spawn)?;
        let mut command = program.command(&spec.id, dir);
        let dir = BoxDir::new(dir);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(dir.open_shim_stderr()?);
        let handle = reaper.spawn(command).map_err(StartError::Spawn)?;
        #[cfg(feature = "testing")]
        crate::testing::record_spawn(dir.path(), handle.id());
        let shim = KillOnDrop {
            handle,
            armed: true,
            owner: process::id(),
        };
        let pipes = (shim.handle.take_stdin(), shim.handle.take_stdout());
        let (Some(stdin), Some(stdout)) = pipes else {
            let error = io::Error::other("the pipes of the shim cannot be polled");
            return Err(StartError::Spawn(error));
        };
        Ok(Self {
            shim,
            dir,
            runtime,
            stdin,
            stdout: BufReader::new(stdout),
            detached: spec.detached,
            payload_pid: None,
        })
    }

    /// Returns the handle of the shim, to signal it or to await its exit.
    pub fn handle(&self) -> &ShimHandle {
        &self.shim.handle
    }

    /// Sends the spec to the shim.
    ///
    /// # Errors
    ///
    /// [`StartError::SendSpec`] if the shim does not read it, usually because it has ended.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe: a shim that receives part of the spec fails. Drop the shim with the future.
    pub async fn tell(&mut self, spec: &InstanceSpec) -> Result<(), StartError> {
        let pid = self.handle().id();
        let to_error = |source| StartError::SendSpec { pid, source };
        let line = spec.to_line_from(&self.runtime);
        let line = line.map_err(|error| to_error(error.into()))?;
        self.stdin.write_all(&line).await.map_err(to_error)
    }

    /// Waits until the payload is ready or has failed.
    ///
    /// # Errors
    ///
    /// [`StartError::Failed`] with the failure that the shim reported, [`StartError::Ended`] if the
    /// shim ended without a report.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe: part of the report may have been read. Drop the shim with the future.
    pub async fn ready(&mut self) -> Result<(), StartError> {
        let mut line = Vec::new();
        let mut report = (&mut self.stdout).take(MAX_REPORT_BYTES);
        // A read error has the same meaning as an empty line.
        let _ = report.read_until(b'\n', &mut line).await;
        match serde_json::from_slice(&line) {
            Ok(Report::Ready { payload_pid }) => {
                self.payload_pid = payload_pid;
                Ok(())
            }
            Ok(Report::Failed(record)) => Err(self.exit_error(Some(record)).await),
            Err(_) => Err(self.exit_error(None).await),
        }
    }

    /// Waits for the end of a shim that reported a failure or closed its stdout, and returns the
    /// error. The record counts only if it matches the exit status: a payload of the same user can
    /// forge both the report and the file.
    async fn exit_error(&self, reported: Option<ExitRecord>) -> StartError {
        let pid = self.handle().id();
        let exit = terminate::wait_or_kill(self.handle()).await.ok();
        let status = exit.and_then(|exit| exit.status);
        let record = match reported {
            Some(record) => Ok(Some(record)),
            None => self.read_exit_record().await,
        };
        let is_trusted = |record: &ExitRecord| {
            record.pid == pid && status.is_none_or(|status| record_matches(record, status))
        };
        match record {
            Ok(Some(record)) if is_trusted(&record) => StartError::Failed { record },
            Err(error) => error.into(),
            Ok(_) => StartError::Ended {
                pid,
                ending: status.and_then(ending_of_status),
            },
        }
    }

    /// Reads the exit record. Retries for up to [`SHORTAGE_TIMEOUT`] while no descriptor is left.
    async fn read_exit_record(&self) -> Result<Option<ExitRecord>, FileError> {
        let begun = Instant::now();
        loop {
            match self.dir.exit_record() {
                Err(error)
                    if is_resource_exhaustion(&error.source)
                        && begun.elapsed() < SHORTAGE_TIMEOUT =>
                {
                    sleep(POLL_INTERVAL).await;
                }
                read => return read,
            }
        }
    }

    /// Kills the shim and waits until it is reaped.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the shim is still killed.
    pub async fn end(self) {
        let exit = terminate::kill(&self.shim.handle);
        if tokio::time::timeout(SIGKILL_TIMEOUT, exit).await.is_err() {
            tracing::error!(pid = self.handle().id(), "the shim survived SIGKILL");
        }
    }

    /// Disarms the kill on drop and returns the parts of the shim.
    pub(super) fn into_parts(mut self) -> ShimParts {
        self.shim.armed = false;
        let pid = self.handle().id();
        // The published record counts only if the shim has ended: the payload may have changed the
        // file.
        let published = || self.dir.shim_record().ok().flatten();
        let record = PidRecord::of(pid).ok().flatten();
        let record = record
            .or_else(|| published().filter(|record| record.pid == pid))
            .unwrap_or(PidRecord {
                pid,
                identity: None,
            });
        let keepalive = match self.stdin.into_owned_fd() {
            Ok(pipe) if !self.detached => Some(Keepalive::new(pipe)),
            _ => None,
        };
        ShimParts {
            handle: self.shim.handle.clone(),
            keepalive,
            payload_pid: self.payload_pid,
            record,
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if self.armed && self.owner == process::id() {
            terminate::kill_in_background(self.handle.clone());
        }
    }
}
