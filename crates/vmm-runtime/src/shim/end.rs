//! How a shim is ended.

use std::thread;
use std::time::{Duration, Instant};

use shim_reaper::{ReaperClosed, ShimExit, ShimHandle, Signal};
use vmm_protocol::KILL_SIGNAL;

use crate::process::procfs;

/// How long a shim may take to kill its payload before it is killed itself: longer than it waits
/// for a payload that does not die. A large one takes seconds to, and its end is to be recorded.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// After how long a shim that is stopped, and so cannot do that, is killed; and one that was about
/// to end by itself is told to.
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
    let begun = Instant::now();
    loop {
        match tokio::time::timeout(PATIENCE, shim.clone()).await {
            Ok(ended) => return ended,
            Err(_) if begun.elapsed() < KILL_TIMEOUT && !procfs::is_stopped(shim.pid()) => {}
            Err(_) => {
                signal(shim, Signal::SIGKILL);
                return shim.clone().await;
            }
        }
    }
}

/// Waits for the end of a shim that is about to end, and ends it by force if it does not.
pub(super) async fn by_itself(shim: &ShimHandle) -> Result<ShimExit, ReaperClosed> {
    match tokio::time::timeout(PATIENCE, shim.clone()).await {
        Ok(ended) => ended,
        Err(_) => by_force(shim).await,
    }
}

/// The same where nothing can be awaited: in a `Drop`.
pub(super) fn in_the_background(shim: ShimHandle) {
    signal(&shim, KILL_SIGNAL);
    let run = {
        let shim = shim.clone();
        move || {
            let begun = Instant::now();
            while shim.is_running()
                && (begun.elapsed() < PATIENCE
                    || begun.elapsed() < KILL_TIMEOUT && !procfs::is_stopped(shim.pid()))
            {
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
