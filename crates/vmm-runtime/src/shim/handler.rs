use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use shim_reaper::{ReaperClosed, ShimExit, ShimHandle, ShimReaper};
use vmm_protocol::{PidRecord, ProcessIdentity};

use super::spawned::Started;
use super::{Keepalive, SpawnedShim, end};
use crate::failpoint::fail_point;

/// A shim whose payload runs: to follow it, to stop it, to let it go.
///
/// Dropping it lets go of a shim that has a watchdog, which then ends. The reaper collects it in
/// any case.
#[derive(Debug)]
pub struct ShimHandler {
    record: PidRecord,
    handle: ShimHandle,
    payload_pid: Option<u32>,
    keepalive: Mutex<Option<Keepalive>>,
}

impl ShimHandler {
    /// Of a shim that this runtime has started, and that is ready. It is registered with the
    /// reaper, which collects it.
    pub fn from_spawned(spawned: SpawnedShim) -> Self {
        let Started {
            handle,
            keepalive,
            payload_pid,
            record,
        } = spawned.into_started();
        Self {
            record,
            handle,
            payload_pid,
            keepalive: Mutex::new(keepalive),
        }
    }

    /// Of a shim that another run of the runtime has started, whose record this is. It is only
    /// observed, never waited for: its parent is somebody else. `None` if it is gone, or its pid
    /// belongs to another process by now; that one is left alone.
    ///
    /// A record without an identity is taken at its word: the caller knows that whoever has the pid
    /// now is the shim.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read, or the reaper refuses the pid.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves at most an observation behind.
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
        let handle = reaper.attach(record.pid).await.map_err(io::Error::other)?;
        // Once more, now that the reaper has a pidfd, which is the one of a process that had the
        // pid between the two looks.
        match ProcessIdentity::of(record.pid)? {
            Some(still) if still.is_same(&found) => Ok(Some(Self {
                record: PidRecord {
                    pid: record.pid,
                    identity: Some(found),
                },
                handle,
                payload_pid: None,
                keepalive: Mutex::new(None),
            })),
            _ => Ok(None),
        }
    }

    #[must_use]
    pub(crate) fn with_payload(mut self, pid: Option<u32>) -> Self {
        self.payload_pid = pid;
        self
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.handle.pid()
    }

    /// Who it is.
    pub fn record(&self) -> &PidRecord {
        &self.record
    }

    /// The payload's own process, if it has one.
    pub fn payload_pid(&self) -> Option<u32> {
        self.payload_pid
    }

    /// True until its end is known.
    pub fn is_running(&self) -> bool {
        self.handle.is_running()
    }

    /// How it ended, if it has.
    pub fn try_exit(&self) -> Option<ShimExit> {
        self.handle.try_exit()
    }

    pub(crate) fn handle(&self) -> &ShimHandle {
        &self.handle
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// [`ReaperClosed`] if the reaper shuts down first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn wait(&self) -> Result<ShimExit, ReaperClosed> {
        self.handle.clone().await
    }

    /// Has the payload asked to stop (SIGTERM), waits for up to `grace`, then [kills](Self::kill).
    /// A shim that ends by itself meanwhile, or has ended, is as good.
    ///
    /// # Errors
    ///
    /// [`ReaperClosed`] if the reaper shuts down first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the procedure: signals already sent stay sent.
    pub async fn stop(&self, grace: Duration) -> Result<ShimExit, ReaperClosed> {
        end::gracefully(&self.handle, grace).await
    }

    /// Has the shim kill the payload and all that descends from it; kills a shim that does not end
    /// within five seconds, or is stopped (SIGKILL). Through the pidfd: never another process.
    ///
    /// # Errors
    ///
    /// [`ReaperClosed`] if the reaper shuts down first.
    ///
    /// # Cancel safety
    ///
    /// As [`stop`](Self::stop).
    pub async fn kill(&self) -> Result<ShimExit, ReaperClosed> {
        end::by_force(&self.handle).await
    }

    /// Drops the watchdog's pipe: an attached shim then ends by itself.
    pub fn release_watchdog(&self) {
        let keepalive = self
            .keepalive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(keepalive);
    }
}
