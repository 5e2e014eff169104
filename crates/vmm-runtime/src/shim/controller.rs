use std::path::Path;
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper};
use tokio_util::sync::CancellationToken;
use vmm_protocol::InstanceSpec;

use super::{ShimHandler, ShimProgram, SpawnedShim, StartError};

/// A controller that starts shims with a reaper and a shim program.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::{path::Path, time::Duration};
/// use shim_reaper::ShimReaper;
/// use vmm_runtime::{InstanceSpec, PayloadSpec, ShimController, ShimProgram};
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
}

impl ShimController {
    /// Creates a controller. A start fails if the payload is not ready within `start_timeout`.
    pub fn new(reaper: ShimReaper, program: ShimProgram, start_timeout: Duration) -> Self {
        Self {
            reaper,
            program,
            start_timeout,
        }
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
    /// handle of the shim to `on_spawn` as soon as it exists.
    pub(crate) async fn start_cancellable(
        &self,
        interrupt: &CancellationToken,
        dir: &Path,
        spec: &InstanceSpec,
        on_spawn: impl FnOnce(&ShimHandle),
    ) -> Result<ShimHandler, StartError> {
        if interrupt.is_cancelled() {
            return Err(StartError::Interrupted);
        }
        let mut shim = SpawnedShim::spawn(&self.reaper, &self.program, spec, dir).await?;
        on_spawn(shim.handle());
        let ready = async {
            // If the shim ended before it read its spec, how it ended says more than the broken
            // pipe.
            let sent = shim.tell(spec).await;
            shim.ready().await.and(sent)
        };
        let outcome = tokio::select! {
            biased;
            () = interrupt.cancelled() => Err(StartError::Interrupted),
            outcome = ready => outcome,
            () = tokio::time::sleep(self.start_timeout) => Err(StartError::NotReady {
                after: self.start_timeout,
            }),
        };
        match outcome {
            Ok(()) => Ok(ShimHandler::from_spawned(shim)),
            Err(error) => {
                shim.end().await;
                Err(error)
            }
        }
    }
}
