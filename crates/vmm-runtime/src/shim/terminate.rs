//! How the runtime stops and kills a shim.

use std::thread;
use std::time::{Duration, Instant};

use shim_reaper::{ReaperClosed, ShimExit, ShimHandle, Signal};
use vmm_protocol::stop_signal::value_of_grace;
use vmm_protocol::{KILL_SIGNAL, procfs};

use crate::sys::queue_signal;

/// How long a shim may take to kill its payload before the runtime kills the shim. Longer than the
/// shim waits for its payload to die: a large payload takes seconds, and its ending must be
/// recorded.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before checking whether a shim is stopped by a signal, and how long a shim that
/// is about to end may take before the runtime kills it.
const EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Sends SIGTERM, waits for up to `grace`, then [kills](kill) the shim.
pub(crate) async fn stop(shim: &ShimHandle, grace: Duration) -> Result<ShimExit, ReaperClosed> {
    request_stop(shim, grace);
    match shim.wait_timeout(grace).await? {
        Some(exit) => Ok(exit),
        None => kill(shim).await,
    }
}

/// Requests that the shim kill its payload and all descendants. Kills a shim that does not, and
/// thereby its payload.
pub(crate) async fn kill(shim: &ShimHandle) -> Result<ShimExit, ReaperClosed> {
    request_kill(shim);
    let start = Instant::now();
    loop {
        match shim.wait_timeout(EXIT_TIMEOUT).await? {
            Some(exit) => return Ok(exit),
            None if start.elapsed() < KILL_TIMEOUT && !procfs::is_stopped(shim.id()) => {}
            None => {
                signal(shim, Signal::SIGKILL);
                return shim.wait().await;
            }
        }
    }
}

/// Waits for a shim that is about to end, and [kills](kill) it if it does not.
pub(super) async fn wait_or_kill(shim: &ShimHandle) -> Result<ShimExit, ReaperClosed> {
    match shim.wait_timeout(EXIT_TIMEOUT).await? {
        Some(exit) => Ok(exit),
        None => kill(shim).await,
    }
}

/// Kills a shim as [`kill`] does, on a thread of its own. For a `Drop`.
pub(super) fn kill_in_background(shim: ShimHandle) {
    request_kill(&shim);
    let run = {
        let shim = shim.clone();
        move || {
            let start = Instant::now();
            while shim.is_running()
                && (start.elapsed() < EXIT_TIMEOUT
                    || start.elapsed() < KILL_TIMEOUT && !procfs::is_stopped(shim.id()))
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

/// Requests that the shim stop its payload within the grace period. Without a pidfd, or if a sandbox
/// forbids signals with a value, the shim applies the grace period of its spec.
fn request_stop(shim: &ShimHandle, grace: Duration) {
    let queued = shim
        .pidfd()
        .and_then(|pidfd| queue_signal(pidfd, Signal::SIGTERM.as_raw(), value_of_grace(grace)));
    if queued.is_err() {
        signal(shim, Signal::SIGTERM);
    }
}

/// Requests that the shim kill its payload and end.
pub(crate) fn request_kill(shim: &ShimHandle) {
    if let Ok(request) = Signal::try_from(KILL_SIGNAL as i32) {
        signal(shim, request);
    }
}

/// Sends a signal. The shim may already have ended and been reaped.
fn signal(shim: &ShimHandle, signal: Signal) {
    if let Err(error) = shim.send_signal(signal) {
        tracing::debug!(pid = shim.id(), %signal, %error, "cannot send signal to shim");
    }
}
