use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::{Instant, sleep};
use vmm_protocol::{
    ExitRecord, FILES, FileError, InstanceSpec, PidRecord, Report, RuntimeProcess,
    is_resource_exhaustion, open_log,
};

use super::{Keepalive, ShimProgram, StartError, end};
use crate::boxes::{ending_of, record_fits};
use crate::lifecycle::STUCK_AFTER;

/// A shim whose payload is not ready yet: registered with the reaper from birth, and killed if
/// this is dropped.
///
/// [`ShimController::start`](crate::ShimController::start) takes all the steps from here to a
/// [`ShimHandler`](crate::ShimHandler).
#[derive(Debug)]
#[must_use = "a spawned shim is killed when it is dropped"]
pub struct SpawnedShim {
    shim: KillOnDrop,
    dir: PathBuf,
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
    /// The process that has started it: dropped in a forked child, this kills nothing.
    owner: u32,
}

/// What there is of a shim whose payload runs.
pub(super) struct Started {
    pub(super) handle: ShimHandle,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) payload_pid: Option<u32>,
    pub(super) record: PidRecord,
}

/// A line that is longer than this is no report.
const MAX_REPORT: u64 = 1 << 20;

/// How long a shortage of descriptors may last before a failed start is reported without its record.
const SHORTAGE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl SpawnedShim {
    /// Starts the process of a shim whose box has this directory.
    ///
    /// # Errors
    ///
    /// [`StartError::File`] for its `shim.stderr`, [`StartError::Spawn`] for the process.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the shim is killed and collected.
    pub async fn spawn(
        reaper: &ShimReaper,
        program: &ShimProgram,
        spec: &InstanceSpec,
        dir: &Path,
    ) -> Result<Self, StartError> {
        let runtime = RuntimeProcess::this().map_err(StartError::Spawn)?;
        let mut command = program.command(&spec.id, dir);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(open_log(&dir.join(FILES.shim_stderr))?);
        let handle = reaper.spawn(command).await.map_err(StartError::Spawn)?;
        #[cfg(feature = "testing")]
        crate::testing::witness(dir, handle.pid());
        let shim = KillOnDrop {
            handle,
            armed: true,
            owner: process::id(),
        };
        let pipes = (shim.handle.take_stdin(), shim.handle.take_stdout());
        let (Some(stdin), Some(stdout)) = pipes else {
            let error = io::Error::other("its pipes cannot be polled");
            return Err(StartError::Spawn(error));
        };
        Ok(Self {
            shim,
            dir: dir.to_owned(),
            runtime,
            stdin,
            stdout: BufReader::new(stdout),
            detached: spec.detached,
            payload_pid: None,
        })
    }

    /// To signal it, or to await its end.
    pub fn handle(&self) -> &ShimHandle {
        &self.shim.handle
    }

    /// Tells it its spec.
    ///
    /// # Errors
    ///
    /// [`StartError::SendSpec`] if it does not read, mostly because it has ended.
    ///
    /// # Cancel safety
    ///
    /// None: a shim that is told half of it fails. Drop the shim with the future.
    pub async fn tell(&mut self, spec: &InstanceSpec) -> Result<(), StartError> {
        let pid = self.handle().pid();
        let failed = |source| StartError::SendSpec { pid, source };
        let line = spec.to_line_from(&self.runtime);
        let line = line.map_err(|error| failed(error.into()))?;
        self.stdin.write_all(&line).await.map_err(failed)
    }

    /// Waits until the payload is ready, or never will be.
    ///
    /// # Errors
    ///
    /// [`StartError::Failed`] with what the shim says, [`StartError::Ended`] if it says nothing.
    ///
    /// # Cancel safety
    ///
    /// None: part of the report may have been read. Drop the shim with the future.
    pub async fn ready(&mut self) -> Result<(), StartError> {
        let mut line = Vec::new();
        let mut report = (&mut self.stdout).take(MAX_REPORT);
        // A failure to read is as good as an empty line.
        let _ = report.read_until(b'\n', &mut line).await;
        match serde_json::from_slice(&line) {
            Ok(Report::Ready { payload_pid }) => {
                self.payload_pid = payload_pid;
                Ok(())
            }
            Ok(Report::Failed(record)) => Err(self.ended(Some(record)).await),
            Err(_) => Err(self.ended(None).await),
        }
    }

    /// It has reported its end, or closed its stdout without a word: it is dying, or it is not a
    /// shim. The kernel's status decides whether the record is believed: a payload of the same user
    /// can forge the report as well as the file.
    async fn ended(&self, reported: Option<ExitRecord>) -> StartError {
        let pid = self.handle().pid();
        let exit = end::by_itself(self.handle()).await.ok();
        let status = exit.and_then(|exit| exit.status);
        let record = match reported {
            Some(record) => Ok(Some(record)),
            None => self.read_exit_record().await,
        };
        let is_believed = |record: &ExitRecord| {
            record.pid == pid && status.is_none_or(|status| record_fits(record, status))
        };
        match record {
            Ok(Some(record)) if is_believed(&record) => StartError::Failed { record },
            Err(error) => error.into(),
            Ok(_) => StartError::Ended {
                pid,
                ending: status.and_then(ending_of),
            },
        }
    }

    /// Waits up to [`SHORTAGE_TIMEOUT`] for the descriptors that reading takes.
    async fn read_exit_record(&self) -> Result<Option<ExitRecord>, FileError> {
        let begun = Instant::now();
        loop {
            match ExitRecord::read(&self.dir.join(FILES.exit)) {
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

    /// Ends it by force and waits until it is collected.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the shim is killed nevertheless.
    pub async fn end(self) {
        let ended = end::by_force(&self.shim.handle);
        if tokio::time::timeout(STUCK_AFTER, ended).await.is_err() {
            tracing::error!(pid = self.handle().pid(), "the shim survives SIGKILL");
        }
    }

    pub(super) fn into_started(mut self) -> Started {
        self.shim.armed = false;
        let pid = self.handle().pid();
        // What it has published counts only if it has ended: the payload may have written to that
        // file by now.
        let published = || {
            PidRecord::read(&self.dir.join(FILES.shim_pid))
                .ok()
                .flatten()
        };
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
        Started {
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
            end::in_the_background(self.handle.clone());
        }
    }
}
