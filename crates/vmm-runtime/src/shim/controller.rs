use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper};
use tokio_util::sync::CancellationToken;
use vmm_protocol::{InstanceSpec, with_causes};

use super::disk_threads::DiskThreads;
use super::spawned::report_timeout;
use super::{ShimHandler, ShimProgram, SpawnedShim, StartError, WarmShims};
use crate::workers::Workers;

/// A controller that starts shims with a reaper and a shim program.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::{path::Path, time::Duration};
/// use shim_reaper::ShimReaper;
/// use vmm_runtime::shim::{ShimController, ShimProgram};
/// use vmm_runtime::{InstanceSpec, PayloadSpec};
///
/// let reaper = ShimReaper::start();
/// let controller = ShimController::new(reaper, ShimProgram::this()?, Duration::from_secs(30));
/// let spec = InstanceSpec::new("b1", PayloadSpec::command(["sleep", "60"]));
/// let shim = controller.start(Path::new("/run/b1"), &spec).await?;
/// shim.stop(Duration::from_secs(10)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ShimController {
    reaper: ShimReaper,
    program: ShimProgram,
    start_timeout: Duration,
    disk: DiskThreads,
    warm: Option<Arc<WarmShims>>,
}

impl ShimController {
    /// Creates a controller. A start fails if the payload is not ready within `start_timeout`.
    pub fn new(reaper: ShimReaper, program: ShimProgram, start_timeout: Duration) -> Self {
        Self {
            reaper,
            program,
            start_timeout,
            disk: DiskThreads::Tokio,
            warm: None,
        }
    }

    /// Makes starts take a warm shim where one waits, and access files on the threads of a VMM
    /// runtime.
    pub(crate) fn in_runtime(mut self, warm: Arc<WarmShims>, disk: Workers) -> Self {
        self.warm = Some(warm);
        self.disk = DiskThreads::Workers(disk);
        self
    }

    /// Starts the shim of the box with the directory `dir`, and waits until its payload is ready.
    ///
    /// # Errors
    ///
    /// [`StartError`]. Whichever step failed, no process is left.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the shim is killed and reaped.
    pub async fn start(&self, dir: &Path, spec: &InstanceSpec) -> Result<ShimHandler, StartError> {
        let never = CancellationToken::new();
        self.start_cancellable(&never, dir, spec, |_| {}).await
    }

    /// Starts a shim as [`start`](Self::start) does, until `interrupt` is cancelled. Passes the
    /// handle of the shim to `on_spawn` as soon as the shim belongs to the box: twice if a warm shim
    /// ends or hangs before it has taken the box.
    pub(crate) async fn start_cancellable(
        &self,
        interrupt: &CancellationToken,
        dir: &Path,
        spec: &InstanceSpec,
        on_spawn: impl Fn(&ShimHandle),
    ) -> Result<ShimHandler, StartError> {
        if interrupt.is_cancelled() {
            return Err(StartError::Interrupted);
        }
        if let Some(warm) = &self.warm
            && let Some(process) = warm.take()
        {
            let mut shim = SpawnedShim::from_warm(process, self.disk.clone(), spec, dir);
            on_spawn(shim.handle());
            let takeover = shim.enforce_takeover();
            let outcome = tokio::select! {
                // A report that can be read counts, although the timeout has ended.
                biased;
                outcome = self.wait_until_ready(&mut shim, interrupt, spec) => outcome,
                error = takeover => Err(error),
            };
            let Err(error) = outcome else {
                return Ok(ShimHandler::from_spawned(shim));
            };
            let pid = shim.handle().id();
            if shim.end_takeover().await {
                return Err(error);
            }
            if interrupt.is_cancelled() {
                return Err(StartError::Interrupted);
            }
            tracing::warn!(pid, error = %with_causes(&error), "a warm shim has not taken its box");
            warm.count_failure();
        }
        let disk = self.disk.clone();
        let mut shim = SpawnedShim::spawn_on(disk, &self.reaper, &self.program, spec, dir).await?;
        on_spawn(shim.handle());
        match self.wait_until_ready(&mut shim, interrupt, spec).await {
            Ok(()) => Ok(ShimHandler::from_spawned(shim)),
            Err(error) => {
                shim.end().await;
                Err(error)
            }
        }
    }

    /// Sends the spec, and waits until the payload is ready.
    async fn wait_until_ready(
        &self,
        shim: &mut SpawnedShim,
        interrupt: &CancellationToken,
        spec: &InstanceSpec,
    ) -> Result<(), StartError> {
        let ready = async {
            // If the shim ended before it read its spec, how it ended says more than the broken
            // pipe.
            let sent = shim.send_spec(spec).await;
            shim.ready().await.and(sent)
        };
        tokio::select! {
            biased;
            () = interrupt.cancelled() => Err(StartError::Interrupted),
            outcome = ready => outcome,
            () = report_timeout(self.start_timeout) => Err(StartError::NotReady {
                after: self.start_timeout,
            }),
        }
    }
}
