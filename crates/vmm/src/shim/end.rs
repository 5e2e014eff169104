//! How a shim is ended.

use std::thread;
use std::time::{Duration, Instant};

use shim_reaper::{ReaperClosed, ShimExit, ShimHandle, Signal};
use vmm_shim::KILL_SIGNAL;

/// How long a shim may take to kill its payload before it is killed itself.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks, waits for up to `grace`, then ends it by force.
pub(crate) async fn gracefully(
    shim: &ShimHandle,
    grace: Duration,
) -> Result<ShimExit, ReaperClosed> {
    signal(shim, Signal::SIGTERM);
    match tokio::time::timeout(grace, shim.clone()).await {
        Ok(ended) => ended,
        Err(_) => by_force(shim).await,
    }
}

/// Has the shim kill its payload with all that descends from it; one that does not is killed, and
/// its payload with it.
pub(crate) async fn by_force(shim: &ShimHandle) -> Result<ShimExit, ReaperClosed> {
    signal(shim, KILL_SIGNAL);
    match tokio::time::timeout(PATIENCE, shim.clone()).await {
        Ok(ended) => ended,
        Err(_) => {
            signal(shim, Signal::SIGKILL);
            shim.clone().await
        }
    }
}

/// The same where nothing can be awaited: in a `Drop`.
pub(super) fn in_the_background(shim: ShimHandle) {
    signal(&shim, KILL_SIGNAL);
    let run = {
        let shim = shim.clone();
        move || {
            let deadline = Instant::now() + PATIENCE;
            while shim.is_running() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            if shim.is_running() {
                signal(&shim, Signal::SIGKILL);
            }
        }
    };
    if thread::Builder::new().spawn(run).is_err() {
        signal(&shim, Signal::SIGKILL);
    }
}

/// It may have ended by itself, and been collected, at any time.
fn signal(shim: &ShimHandle, signal: Signal) {
    if let Err(error) = shim.signal(signal) {
        tracing::debug!(pid = shim.pid(), %signal, %error, "signal not sent");
    }
}
