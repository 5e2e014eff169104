use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use shim_reaper::{ReaperClosed, ShimExit, ShimHandle, ShimReaper};
use vmm_protocol::{BootTimes, PidRecord, ProcessIdentity, UnappliedRule};

use super::spawned::{Keepalive, ShimParts};
use super::{SpawnedShim, terminate};
use crate::failpoint::fail_point;

/// A handler of a shim whose payload is ready: observes, stops, kills or releases it.
///
/// Dropping the handler releases the watchdog: an attached shim then ends. The reaper reaps the
/// shim in every case.
#[derive(Debug)]
pub struct ShimHandler {
    record: PidRecord,
    handle: ShimHandle,
    payload_pid: Option<u32>,
    boot: Option<BootTimes>,
    start_duration: Option<Duration>,
    helpers: u32,
    unapplied_rules: Option<Vec<UnappliedRule>>,
    keepalive: Mutex<Option<Keepalive>>,
}

impl ShimHandler {
    /// Creates the handler of a shim that this process spawned. The reaper has registered it and
    /// will reap it.
    pub fn from_spawned(spawned: SpawnedShim) -> Self {
        let ShimParts {
            handle,
            keepalive,
            payload_pid,
            boot,
            helpers,
            unapplied_rules,
            record,
        } = spawned.into_parts();
        Self {
            record,
            handle,
            payload_pid,
            boot,
            start_duration: None,
            helpers,
            unapplied_rules: Some(unapplied_rules),
            keepalive: Mutex::new(keepalive),
        }
    }

    /// Re-attaches to the shim that `record` identifies, which an earlier runtime spawned. Such a
    /// shim is only observed: its parent reaps it. Returns `None` if the shim is gone, or if
    /// another process has its pid; that process is left alone.
    ///
    /// A record without an identity is trusted: the caller knows that the process with this pid is
    /// the shim.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or the reaper refuses the pid.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves at most a registration with the reaper.
    pub async fn from_pid(reaper: &ShimReaper, record: &PidRecord) -> io::Result<Option<Self>> {
        let Some(found) = ProcessIdentity::of(record.pid)? else {
            return Ok(None);
        };
        if record
            .identity
            .as_ref()
            .is_some_and(|recorded| !found.is_same(recorded))
        {
            return Ok(None);
        }
        fail_point!("vmm_runtime::attach");
        let handle = reaper.attach(record.pid).map_err(io::Error::other)?;
        // Checked again: the reaper's pidfd belongs to a process that had the pid between the two
        // checks.
        match ProcessIdentity::of(record.pid)? {
            Some(current) if current.is_same(&found) => Ok(Some(Self {
                record: PidRecord {
                    pid: record.pid,
                    identity: Some(found),
                },
                handle,
                payload_pid: None,
                boot: None,
                start_duration: None,
                helpers: 0,
                unapplied_rules: None,
                keepalive: Mutex::new(None),
            })),
            _ => Ok(None),
        }
    }

    /// Sets the pid of the payload of a re-attached shim, and the number of its helper processes.
    #[must_use]
    pub(crate) fn with_payload(mut self, pid: Option<u32>, helpers: u32) -> Self {
        self.payload_pid = pid;
        self.helpers = helpers;
        self
    }

    /// Sets how long the start took.
    #[must_use]
    pub(crate) fn with_start_duration(mut self, duration: Duration) -> Self {
        self.start_duration = Some(duration);
        self
    }

    /// Returns the pid of the shim.
    pub fn pid(&self) -> u32 {
        self.handle.id()
    }

    /// Returns the pid and the identity of the shim.
    pub fn record(&self) -> &PidRecord {
        &self.record
    }

    /// Returns the pid of the payload, if the engine reported one.
    pub fn payload_pid(&self) -> Option<u32> {
        self.payload_pid
    }

    /// Returns the number of helper processes that the payload needs. They run as long as the payload.
    pub fn helpers(&self) -> u32 {
        self.helpers
    }

    /// Returns how long the guest took to boot. Only the runtime that has started the box knows it,
    /// and only if the guest has an agent.
    pub fn boot_times(&self) -> Option<BootTimes> {
        self.boot
    }

    /// Returns how long the start took. Only the runtime that has started the box knows it.
    pub(crate) fn start_duration(&self) -> Option<Duration> {
        self.start_duration
    }

    /// Returns the confinement rules that are not applied to the payload. Only the runtime that has
    /// started the box knows them.
    pub fn unapplied_rules(&self) -> Option<&[UnappliedRule]> {
        self.unapplied_rules.as_deref()
    }

    /// Returns true until the exit of the shim is known.
    pub fn is_running(&self) -> bool {
        self.handle.is_running()
    }

    /// Returns how the shim ended, or `None` while it is running.
    pub fn try_exit(&self) -> Option<ShimExit> {
        self.handle.try_wait().ok().flatten()
    }

    /// Returns the reaper's handle.
    pub(crate) fn handle(&self) -> &ShimHandle {
        &self.handle
    }

    /// Waits until the shim has ended.
    ///
    /// # Errors
    ///
    /// [`ReaperClosed`] if the reaper shuts down first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn wait(&self) -> Result<ShimExit, ReaperClosed> {
        self.handle.clone().await
    }

    /// Stops the payload with SIGTERM, waits for up to `grace`, then [kills](Self::kill) it.
    /// Succeeds if the shim ends by itself or has already ended.
    ///
    /// # Errors
    ///
    /// [`ReaperClosed`] if the reaper shuts down first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the procedure; signals that were sent remain sent.
    pub async fn stop(&self, grace: Duration) -> Result<ShimExit, ReaperClosed> {
        terminate::stop(&self.handle, grace).await
    }

    /// Kills the payload and all its descendants, through the shim. Sends SIGKILL to a shim that
    /// does not end within five seconds or is stopped by a signal. Signals go through the pidfd and
    /// so never reach another process.
    ///
    /// # Errors
    ///
    /// [`ReaperClosed`] if the reaper shuts down first.
    ///
    /// # Cancel safety
    ///
    /// See [`stop`](Self::stop).
    pub async fn kill(&self) -> Result<ShimExit, ReaperClosed> {
        terminate::kill(&self.handle).await
    }

    /// Closes the watchdog pipe: an attached shim then ends by itself.
    pub fn release_watchdog(&self) {
        let keepalive = self
            .keepalive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(keepalive);
    }
}
