//! Stops shims, and shuts the reaper down after it. The functions that are not async block, and
//! depend on the progress of no task and no thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;
use tokio::sync::oneshot;

use crate::builder::MAX_DURATION;
use crate::core::Core;
use crate::group::{self, End, Group, GroupError};
use crate::kernel::{ProcessTable, WaitResult};
use crate::shim::Shim;
use crate::{ShutdownReport, Signal, StopReport};

/// How long a shim that was sent SIGKILL is waited for. It may be stuck in the kernel, and a large
/// process takes long to release its memory.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a process without a pidfd is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

type Shims<K> = Vec<Arc<Shim<<K as ProcessTable>::Pidfd>>>;

/// Sends SIGTERM and SIGCONT to every child, waits for up to `grace`, sends SIGKILL to those that still
/// run, and waits for them.
pub(crate) fn stop_all<K: ProcessTable>(core: &Core<K>, grace: Duration) -> StopReport {
    let children = stoppable_children(core);
    terminate_all(&core.shared.kernel, children.clone());
    kill_at(core, children, after(&core.shared.kernel, grace), |_| {})
}

/// Waits for the shims that were sent SIGKILL, and shuts down the reaper.
pub(crate) fn shutdown<K: ProcessTable>(core: &Core<K>) -> ShutdownReport {
    if let Some(grace) = grace_of_begun_stop(core) {
        return shutdown_stopping(core, grace);
    }
    core.shared.refuse();
    let kernel = &core.shared.kernel;
    let deadline = after(kernel, KILL_TIMEOUT);
    // One after another: the wait for the last ends when all have exited.
    for shim in core.shared.killed_children() {
        await_exit(kernel, &shim, deadline);
    }
    core.close_blocking()
}

/// Stops every child, and shuts down the reaper.
pub(crate) fn shutdown_stopping<K: ProcessTable>(
    core: &Core<K>,
    grace: Duration,
) -> ShutdownReport {
    let begun = core.shared.begin_stop(after(&core.shared.kernel, grace));
    continue_shutdown(core, begun)
}

fn continue_shutdown<K: ProcessTable>(
    core: &Core<K>,
    (deadline, joined): (Instant, bool),
) -> ShutdownReport {
    let children = stoppable_children(core);
    if !joined {
        core.shared.set_stopping(children.clone());
        terminate_all(&core.shared.kernel, children.clone());
    }
    // Recorded first: a concurrent shutdown may finish as soon as they have died.
    let record = |killed: &[u32]| core.shared.add_killed_pids(killed);
    kill_at(core, children, deadline, record);
    core.close_blocking()
}

pub(crate) async fn stop_all_on_thread<K: ProcessTable>(
    core: &Arc<Core<K>>,
    grace: Duration,
) -> StopReport {
    let on_thread = Arc::clone(core);
    run_on_thread(&core.shared.kernel, move || stop_all(&on_thread, grace)).await
}

/// Does what [`shutdown`] does, on another thread if it has to wait.
pub(crate) async fn shutdown_on_thread<K: ProcessTable>(core: &Arc<Core<K>>) -> ShutdownReport {
    if grace_of_begun_stop(core).is_none() {
        core.shared.refuse();
        if core.shared.killed_children().is_empty() {
            return core.close().await;
        }
    }
    let on_thread = Arc::clone(core);
    run_on_thread(&core.shared.kernel, move || shutdown(&on_thread)).await
}

pub(crate) async fn shutdown_stopping_on_thread<K: ProcessTable>(
    core: &Arc<Core<K>>,
    grace: Duration,
) -> ShutdownReport {
    let begun = core.shared.begin_stop(after(&core.shared.kernel, grace));
    let on_thread = Arc::clone(core);
    run_on_thread(&core.shared.kernel, move || {
        continue_shutdown(&on_thread, begun)
    })
    .await
}

/// Runs blocking code on a thread of its own, to the end even if the future is dropped. If no thread
/// can be started, runs it on the calling thread.
///
/// The thread is started in the first poll.
pub(crate) async fn run_on_thread<T: Send + 'static>(
    kernel: &impl ProcessTable,
    run: impl Fn() -> T + Send + Sync + 'static,
) -> T {
    let (sender, receiver) = oneshot::channel();
    let run = Arc::new(run);
    let on_thread = Arc::clone(&run);
    let spawned = kernel.spawn_thread(move || {
        // Fails if the future has been dropped.
        let _ = sender.send(on_thread());
    });
    match spawned {
        Ok(()) => match receiver.await {
            Ok(value) => value,
            // The code panicked, and does so again in the task of the caller.
            Err(_) => run(),
        },
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread; the calling thread blocks instead");
            run()
        }
    }
}

/// Returns a grace period if a stopping shutdown has begun or is requested: the longest, which does
/// not shorten that of the shutdown, or the requested one.
fn grace_of_begun_stop<K: ProcessTable>(core: &Core<K>) -> Option<Duration> {
    if core.shared.has_begun_stop() {
        return Some(MAX_DURATION);
    }
    let request = core.shared.stop_request.as_ref();
    let requested = request.filter(|request| request.token.is_cancelled());
    requested.map(|request| request.grace)
}

pub(crate) fn after(kernel: &impl ProcessTable, time: Duration) -> Instant {
    kernel.now() + time.min(MAX_DURATION)
}

/// Returns the running children. A pid that `register` got may not be that of a child, which the
/// worker has yet to notice.
fn stoppable_children<K: ProcessTable>(core: &Core<K>) -> Shims<K> {
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
fn kill_at<K: ProcessTable>(
    core: &Core<K>,
    children: Shims<K>,
    deadline: Instant,
    before_kill: impl FnOnce(&[u32]),
) -> StopReport {
    let kernel = &core.shared.kernel;
    let count = children.len();
    let left = await_ends(kernel, children, deadline, End::Await);
    // A shutdown in the meantime leaves its shims running.
    let (released, left): (Shims<K>, Shims<K>) =
        left.into_iter().partition(|shim| shim.state().is_closed());
    before_kill(&pids(&left));
    let (killed, refused) = signal_all(kernel, left, Signal::SIGKILL);
    let killed_pids = pids(&killed);
    let mut still_running = await_ends(kernel, killed, after(kernel, KILL_TIMEOUT), End::Kill);
    still_running.extend(await_ends(kernel, refused, kernel.now(), End::Await));
    still_running.extend(released);
    let still_running = pids(&still_running);
    core.reap_ready_blocking();
    StopReport {
        stopped: (count - still_running.len()) as u64,
        killed: killed_pids,
        still_running,
    }
}

/// Sends SIGTERM, and SIGCONT to those that got it: a stopped process handles no signal before.
fn terminate_all<K: ProcessTable>(kernel: &K, shims: Shims<K>) {
    let (terminated, _) = signal_all(kernel, shims, Signal::SIGTERM);
    for shim in terminated {
        // Fails if it has ended.
        match Group::of(kernel, &shim) {
            Some(group) => drop(group.signal(Signal::SIGCONT)),
            None => drop(shim.signal(kernel, Signal::SIGCONT)),
        }
    }
}

/// Returns the shims that got the signal, and those that did not.
fn signal_all<K: ProcessTable>(
    kernel: &K,
    shims: Shims<K>,
    signal: Signal,
) -> (Shims<K>, Shims<K>) {
    shims
        .into_iter()
        .partition(|shim| signal_with_group(kernel, shim, signal))
}

/// Signals the group of a shim if there is one, else the shim. Returns whether it got the signal.
fn signal_with_group<K: ProcessTable>(kernel: &K, shim: &Shim<K::Pidfd>, signal: Signal) -> bool {
    let pid = shim.pid;
    match Group::of(kernel, shim).map(|group| group.signal(signal)) {
        Some(Ok(())) => return true,
        // It may have left its group.
        None | Some(Err(GroupError::Empty { .. })) => {}
        Some(Err(error)) => {
            tracing::warn!(pid, %signal, ?error, "cannot signal the group of the shim");
        }
    }
    match shim.signal(kernel, signal) {
        Ok(()) => true,
        // It has just ended.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => false,
        Err(error) => {
            tracing::warn!(pid, %signal, %error, "cannot signal the shim");
            false
        }
    }
}

fn pids<P>(shims: &[Arc<Shim<P>>]) -> Vec<u32> {
    let mut pids: Vec<u32> = shims.iter().map(|shim| shim.pid).collect();
    pids.sort_unstable();
    pids
}

/// Waits until the processes have exited and the groups of the shims are empty, and returns those that
/// still run at `deadline`.
fn await_ends<K: ProcessTable>(
    kernel: &K,
    shims: Shims<K>,
    deadline: Instant,
    how: End,
) -> Shims<K> {
    // One after another: the wait for the last ends when all have exited.
    let (exited, mut running): (Shims<K>, Shims<K>) = shims
        .into_iter()
        .partition(|shim| await_exit(kernel, shim, deadline));
    running.extend(group::end_all(kernel, exited, deadline, how));
    running
}

fn await_exit<K: ProcessTable>(kernel: &K, shim: &Shim<K::Pidfd>, deadline: Instant) -> bool {
    while shim.is_process_running(kernel) {
        // A duplicate, because the worker closes the pidfd when it reaps the process.
        let pidfd = shim.state().pidfd.as_ref().map(|fd| kernel.duplicate(fd));
        if let Some(Ok(pidfd)) = pidfd {
            return kernel.await_exit(&pidfd, deadline);
        }
        if deadline <= kernel.now() {
            return false;
        }
        kernel.sleep(POLL_INTERVAL);
    }
    true
}

#[cfg(test)]
mod tests;
