use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use vmm_protocol::{
    Assignment, BootTimes, BoxDir, ExitRecord, FileError, InstanceSpec, Invocation, PidRecord,
    Report, RuntimeProcess, UnappliedRule, is_resource_exhaustion, to_line,
};

use super::disk_threads::DiskThreads;
use super::process::ShimProcess;
use super::{ShimProgram, StartError, ending_of_status, record_matches, terminate};
use crate::process::SIGKILL_TIMEOUT;

/// A spawned shim whose payload is not ready yet. It is registered with the reaper from birth, and
/// is killed if this value is dropped.
///
/// [`ShimController::start`](super::ShimController::start) performs all steps from here to a
/// [`ShimHandler`](super::ShimHandler).
#[derive(Debug)]
#[must_use = "a spawned shim is killed when it is dropped"]
pub struct SpawnedShim {
    process: ShimProcess,
    dir: BoxDir,
    disk: DiskThreads,
    /// What a warm shim has to read before the spec.
    assignment: Option<Assignment>,
    /// Whether the shim has the box: a warm one reports that it has taken it.
    has_box: Arc<AtomicBool>,
    detached: bool,
    /// Once the payload is ready.
    record: Option<PidRecord>,
    payload_pid: Option<u32>,
    boot: Option<BootTimes>,
    helpers: u32,
    unapplied_rules: Vec<UnappliedRule>,
}

/// The parts of a [`ShimHandler`](super::ShimHandler).
pub(super) struct ShimParts {
    pub(super) handle: ShimHandle,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) payload_pid: Option<u32>,
    pub(super) boot: Option<BootTimes>,
    pub(super) helpers: u32,
    pub(super) unapplied_rules: Vec<UnappliedRule>,
    pub(super) record: PidRecord,
}

/// The runtime's end of a shim's watchdog pipe. An attached shim runs as long as it is held.
///
/// When it is dropped, or the process that holds it dies, the pipe hangs up. The shim then stops
/// its payload, kills it after the grace period, and exits. The descriptor is close-on-exec from
/// its creation, so no other child of the process keeps the pipe open. A child forked without an
/// exec does, but the shim also watches the process itself.
#[derive(Debug)]
pub(super) struct Keepalive(#[expect(dead_code, reason = "held only to be dropped")] OwnedFd);

impl Keepalive {
    fn new(pipe: OwnedFd) -> Self {
        Self(pipe)
    }
}

/// A longer line is not a report.
const MAX_REPORT_BYTES: u64 = 1 << 20;

/// How long a warm shim may take to take its box. It takes less than a millisecond.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a report that has arrived may wait until this runtime reads it. A signal that stops and continues
/// the process interrupts the wait for reports, and timers that have ended come first then.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a shortage of descriptors may last before a failed start is reported without its record.
const SHORTAGE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until a report is late. Poll it after the read of the report.
pub(super) async fn report_timeout(timeout: Duration) {
    sleep(timeout).await;
    sleep(READ_TIMEOUT).await;
}

impl SpawnedShim {
    /// Spawns the shim of the box with the directory `dir`. Uses the blocking threads of the current
    /// tokio runtime for the files of the box.
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
        Self::spawn_on(DiskThreads::Tokio, reaper, program, spec, dir).await
    }

    /// Spawns a shim as [`spawn`](Self::spawn) does, and uses `disk` for the files of the box.
    pub(super) async fn spawn_on(
        disk: DiskThreads,
        reaper: &ShimReaper,
        program: &ShimProgram,
        spec: &InstanceSpec,
        dir: &Path,
    ) -> Result<Self, StartError> {
        let invocation = Invocation::Box {
            id: spec.id.clone(),
            dir: dir.to_owned(),
        };
        let command = program.command(&invocation, dir);
        let mut command = command.map_err(StartError::Spawn)?;
        let dir = BoxDir::new(dir);
        let open_stderr = {
            let dir = dir.clone();
            move || dir.open_shim_stderr()
        };
        let stderr = disk.run(open_stderr).await;
        command.stderr(stderr.ok_or(StartError::Interrupted)??);
        command.stdin(Stdio::piped());
        let process = RuntimeProcess::this()
            .and_then(|runtime| ShimProcess::spawn(reaper, command, dir.path(), runtime, None))
            .map_err(StartError::Spawn)?;
        Ok(Self::new(process, dir, disk, None, spec))
    }

    /// Gives this box to a warm shim. [`send_spec`](Self::send_spec) sends the assignment.
    pub(super) fn from_warm(
        process: ShimProcess,
        disk: DiskThreads,
        spec: &InstanceSpec,
        dir: &Path,
    ) -> Self {
        let assignment = Assignment {
            id: spec.id.clone(),
            dir: dir.to_owned(),
        };
        Self::new(process, BoxDir::new(dir), disk, Some(assignment), spec)
    }

    fn new(
        process: ShimProcess,
        dir: BoxDir,
        disk: DiskThreads,
        assignment: Option<Assignment>,
        spec: &InstanceSpec,
    ) -> Self {
        Self {
            process,
            dir,
            disk,
            has_box: Arc::new(AtomicBool::new(assignment.is_none())),
            assignment,
            detached: spec.detached,
            record: None,
            payload_pid: None,
            boot: None,
            helpers: 0,
            unapplied_rules: Vec::new(),
        }
    }

    /// Returns an error if this warm shim does not take its box in time, and does not return otherwise.
    pub(super) fn enforce_takeover(&self) -> impl Future<Output = StartError> + use<> {
        let has_box = Arc::clone(&self.has_box);
        async move {
            report_timeout(TAKEOVER_TIMEOUT).await;
            if has_box.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
            StartError::NotReady {
                after: TAKEOVER_TIMEOUT,
            }
        }
    }

    /// Returns the handle of the shim, to signal it or to await its exit.
    pub fn handle(&self) -> &ShimHandle {
        self.process.handle()
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
    pub async fn send_spec(&mut self, spec: &InstanceSpec) -> Result<(), StartError> {
        let pid = self.handle().id();
        let to_error = |source| StartError::SendSpec { pid, source };
        let lines = || {
            let mut lines = self.assignment.as_ref().map_or(Ok(Vec::new()), to_line)?;
            lines.extend(spec.to_line_from(&self.process.runtime)?);
            Ok::<_, serde_json::Error>(lines)
        };
        let lines = lines().map_err(|error| to_error(error.into()))?;
        self.process.stdin.write_all(&lines).await.map_err(to_error)
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
        match self.read_report().await {
            Some(Report::Ready {
                payload_pid,
                boot,
                helpers,
                unapplied_rules,
            }) => {
                self.payload_pid = payload_pid;
                self.boot = boot;
                self.helpers = helpers;
                self.unapplied_rules = unapplied_rules;
                self.record = match PidRecord::of(self.handle().id()) {
                    Ok(Some(record)) => Some(record),
                    // It has ended: before that, the payload may have changed the published record.
                    _ => self.published_record().await,
                };
                Ok(())
            }
            Some(Report::Failed(record)) => Err(self.exit_error(Some(record)).await),
            Some(Report::Taken) | None => Err(self.exit_error(None).await),
        }
    }

    /// Reads a report that the payload is ready or has failed. Returns `None` if there is none.
    async fn read_report(&mut self) -> Option<Report> {
        loop {
            let mut line = Vec::new();
            let mut report = (&mut self.process.stdout).take(MAX_REPORT_BYTES);
            // A read error has the same meaning as an empty line.
            let _ = report.read_until(b'\n', &mut line).await;
            match serde_json::from_slice(&line).ok()? {
                Report::Taken => self.has_box.store(true, Ordering::Release),
                report => return Some(report),
            }
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
            Ok(Some(record)) if is_trusted(&record) => StartError::Failed {
                record,
                output: None,
            },
            Err(error) => error.into(),
            Ok(_) => StartError::Ended {
                pid,
                ending: status.and_then(ending_of_status),
                output: None,
            },
        }
    }

    /// Reads the exit record. Retries for up to [`SHORTAGE_TIMEOUT`] while no descriptor is left.
    async fn read_exit_record(&self) -> Result<Option<ExitRecord>, FileError> {
        let begun = Instant::now();
        loop {
            let dir = self.dir.clone();
            match self.disk.run(move || dir.exit_record()).await {
                Some(Err(error))
                    if is_resource_exhaustion(&error.source)
                        && begun.elapsed() < SHORTAGE_TIMEOUT =>
                {
                    sleep(POLL_INTERVAL).await;
                }
                Some(read) => return read,
                None => return Ok(None),
            }
        }
    }

    /// Returns the record that the shim has published.
    async fn published_record(&self) -> Option<PidRecord> {
        let (dir, pid) = (self.dir.clone(), self.handle().id());
        let record = self.disk.run(move || dir.shim_record()).await;
        record?.ok()?.filter(|record| record.pid == pid)
    }

    /// Kills the shim and waits until it is reaped.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the shim is still killed.
    pub async fn end(self) {
        self.process.end().await;
    }

    /// Ends the shim, and returns whether it had its box. If not, it has not started the payload.
    pub(super) async fn end_takeover(mut self) -> bool {
        self.process.kill().await;
        // A process that the shim was creating can hold the pipe open.
        let _ = timeout(SIGKILL_TIMEOUT, self.read_report()).await;
        self.has_box.load(Ordering::Acquire)
    }

    /// Disarms the kill on drop and returns the parts of the shim.
    pub(super) fn into_parts(mut self) -> ShimParts {
        self.process.shim.armed = false;
        let record = self.record.take().unwrap_or(PidRecord {
            pid: self.handle().id(),
            identity: None,
        });
        let keepalive = match self.process.stdin.into_owned_fd() {
            Ok(pipe) if !self.detached => Some(Keepalive::new(pipe)),
            _ => None,
        };
        ShimParts {
            handle: self.process.shim.handle.clone(),
            keepalive,
            payload_pid: self.payload_pid,
            boot: self.boot,
            helpers: self.helpers,
            unapplied_rules: self.unapplied_rules,
            record,
        }
    }
}
