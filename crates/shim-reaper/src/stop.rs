//! Stops shims, and shuts the reaper down after it. The functions that are not async block, and
//! depend on the progress of no task and no thread.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::core::Core;
use crate::kernel::{Linux, ProcessTable, WaitResult};
use crate::shim::Shim;
use crate::thread::run_on_thread;
use crate::{ShutdownReport, Signal, StopReport, sys};

/// How long a shim that was sent SIGKILL is waited for. It may be stuck in the kernel, and a large
/// process takes long to release its memory.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than the life of any process, and short enough to be added to an instant.
const MAX_GRACE: Duration = Duration::from_secs(1 << 32);

/// How often a process without a pidfd is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

type Shims = Vec<Arc<Shim<OwnedFd>>>;

/// Sends SIGTERM to every child, waits for up to `grace`, sends SIGKILL to those that still run, and
/// waits for them.
pub(crate) fn stop_all(core: &Core<Linux>, grace: Duration) -> StopReport {
    let children = stoppable_children(core);
    signal_all(&core.shared.kernel, children.clone(), Signal::SIGTERM);
    kill_at(core, children, after(grace), |_| {})
}

/// Waits for the shims that were sent SIGKILL, and shuts down the reaper.
pub(crate) fn shutdown(core: &Core<Linux>) -> ShutdownReport {
    if let Some(grace) = grace_of_begun_stop(core) {
        return shutdown_stopping(core, grace);
    }
    core.shared.refuse();
    let killed = core.shared.killed_children();
    await_exits(&core.shared.kernel, killed, after(KILL_TIMEOUT));
    core.close_blocking()
}

/// Stops every child, and shuts down the reaper.
pub(crate) fn shutdown_stopping(core: &Core<Linux>, grace: Duration) -> ShutdownReport {
    let begun = core.shared.begin_stop(after(grace));
    continue_shutdown(core, begun)
}

fn continue_shutdown(core: &Core<Linux>, (deadline, joined): (Instant, bool)) -> ShutdownReport {
    let children = stoppable_children(core);
    if !joined {
        signal_all(&core.shared.kernel, children.clone(), Signal::SIGTERM);
    }
    // Recorded first: a concurrent shutdown may finish as soon as they have died.
    let record = |killed: &[u32]| core.shared.add_killed_pids(killed);
    kill_at(core, children, deadline, record);
    core.close_blocking()
}

pub(crate) async fn stop_all_on_thread(core: &Arc<Core<Linux>>, grace: Duration) -> StopReport {
    let core = Arc::clone(core);
    run_on_thread(move || stop_all(&core, grace)).await
}

/// Does what [`shutdown`] does, on another thread if it has to wait.
pub(crate) async fn shutdown_on_thread(core: &Arc<Core<Linux>>) -> ShutdownReport {
    if grace_of_begun_stop(core).is_none() {
        core.shared.refuse();
        if core.shared.killed_children().is_empty() {
            return core.close().await;
        }
    }
    let core = Arc::clone(core);
    run_on_thread(move || shutdown(&core)).await
}

pub(crate) async fn shutdown_stopping_on_thread(
    core: &Arc<Core<Linux>>,
    grace: Duration,
) -> ShutdownReport {
    let begun = core.shared.begin_stop(after(grace));
    let core = Arc::clone(core);
    run_on_thread(move || continue_shutdown(&core, begun)).await
}

/// Returns a grace period if a stopping shutdown has begun or is requested: the longest, which does
/// not shorten that of the shutdown, or the requested one.
fn grace_of_begun_stop(core: &Core<Linux>) -> Option<Duration> {
    if core.shared.has_begun_stop() {
        return Some(MAX_GRACE);
    }
    let request = core.shared.stop_request.as_ref();
    let requested = request.filter(|request| request.token.is_cancelled());
    requested.map(|request| request.grace)
}

fn after(time: Duration) -> Instant {
    Instant::now() + time.min(MAX_GRACE)
}

/// Returns the running children. A pid that `register` got may not be that of a child, which the
/// worker has yet to notice.
fn stoppable_children(core: &Core<Linux>) -> Shims {
    let mut children = core.shared.running_children();
    children.retain(|shim| {
        let state = shim.state();
        let found = core.shared.kernel.peek(state.wait_target(shim.pid));
        !matches!(found, WaitResult::NotWaitable)
    });
    children
}

/// Waits for the children until `deadline`, sends SIGKILL to those that still run, and waits for
/// them.
fn kill_at(
    core: &Core<Linux>,
    children: Shims,
    deadline: Instant,
    before_kill: impl FnOnce(&[u32]),
) -> StopReport {
    let kernel = &core.shared.kernel;
    let count = children.len();
    let left = await_exits(kernel, children, deadline);
    // A shutdown in the meantime leaves its shims running.
    let (left, released): (Shims, Shims) =
        left.into_iter().partition(|shim| shim.state().is_running());
    before_kill(&pids(&left));
    let (killed, refused) = signal_all(kernel, left, Signal::SIGKILL);
    let killed_pids = pids(&killed);
    let mut still_running = await_exits(kernel, killed, after(KILL_TIMEOUT));
    still_running.extend(await_exits(kernel, refused, Instant::now()));
    still_running.extend(released);
    let still_running = pids(&still_running);
    core.reap_ready_blocking();
    StopReport {
        stopped: (count - still_running.len()) as u64,
        killed: killed_pids,
        still_running,
    }
}

/// Returns the shims that got the signal, and those that did not.
fn signal_all(kernel: &Linux, shims: Shims, signal: Signal) -> (Shims, Shims) {
    shims
        .into_iter()
        .partition(|shim| match shim.signal(kernel, signal) {
            Ok(()) => true,
            // It has just ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => false,
            Err(error) => {
                tracing::warn!(pid = shim.pid, %signal, %error, "cannot signal the shim");
                false
            }
        })
}

fn pids(shims: &Shims) -> Vec<u32> {
    let mut pids: Vec<u32> = shims.iter().map(|shim| shim.pid).collect();
    pids.sort_unstable();
    pids
}

/// Waits until the processes have exited, and returns those that are still running at `deadline`.
fn await_exits(kernel: &Linux, mut shims: Shims, deadline: Instant) -> Shims {
    // One after another: the wait for the last ends when all have exited.
    shims.retain(|shim| !await_exit(kernel, shim, deadline));
    shims
}

fn await_exit(kernel: &Linux, shim: &Shim<OwnedFd>, deadline: Instant) -> bool {
    while shim.is_process_running(kernel) {
        // A duplicate, because the worker closes the pidfd when it reaps the process.
        if let Ok(pidfd) = shim.duplicate_pidfd() {
            return sys::pidfd_await_exit(pidfd.as_fd(), Some(deadline));
        }
        if deadline <= Instant::now() {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
    true
}
