use std::path::Path;
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper};
use tokio_util::sync::CancellationToken;
use vmm_protocol::InstanceSpec;

use super::{ShimHandler, ShimProgram, SpawnedShim, StartError};

/// Starts shims.
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
    /// `start_timeout` is how long a start may take until the payload is ready.
    pub fn new(reaper: ShimReaper, program: ShimProgram, start_timeout: Duration) -> Self {
        Self {
            reaper,
            program,
            start_timeout,
        }
    }

    /// Starts the shim of a box and waits until its payload is ready. `dir` is the box's directory.
    ///
    /// # Errors
    ///
    /// [`StartError`]; whatever the step that failed, no process is left.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the shim is killed and collected.
    pub async fn start(&self, dir: &Path, spec: &InstanceSpec) -> Result<ShimHandler, StartError> {
        let never = CancellationToken::new();
        self.start_unless(&never, dir, spec, |_| {}).await
    }

    /// Gives up when it is `interrupted`. Shows the shim to `spawned` as soon as there is one.
    pub(crate) async fn start_unless(
        &self,
        interrupted: &CancellationToken,
        dir: &Path,
        spec: &InstanceSpec,
        spawned: impl FnOnce(&ShimHandle),
    ) -> Result<ShimHandler, StartError> {
        if interrupted.is_cancelled() {
            return Err(StartError::Interrupted);
        }
        let mut shim = SpawnedShim::spawn(&self.reaper, &self.program, spec, dir).await?;
        spawned(shim.handle());
        let ready = async {
            // One that has ended before it was told anything says more than the broken pipe.
            let told = shim.tell(spec).await;
            shim.ready().await.and(told)
        };
        let outcome = tokio::select! {
            biased;
            () = interrupted.cancelled() => Err(StartError::Interrupted),
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
