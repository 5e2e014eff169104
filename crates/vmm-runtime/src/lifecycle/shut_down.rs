use std::time::Duration;

use futures::future::join_all;
use shim_reaper::ShutdownReport;
use tokio::time::{Instant, timeout};

use super::{cleanup, observe_exit};
use crate::BoxId;
use crate::boxes::ShutdownTarget;
use crate::core::Core;
use crate::process::SIGKILL_TIMEOUT;
use crate::shim::terminate;

/// The result of a shutdown of the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeShutdown {
    /// The ids of the boxes that were running or starting and have been stopped.
    pub stopped: Vec<BoxId>,
    /// The ids of the detached boxes that keep running.
    pub left_running: Vec<BoxId>,
    /// The ids of the boxes whose shims survived SIGKILL.
    pub stuck: Vec<BoxId>,
    /// The report of the reaper.
    pub reaper: ShutdownReport,
}

/// How long a hung disk may delay the shutdown, at each of four points.
const DISK_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest timeout: short enough to be added to an instant.
const MAX_TIMEOUT: Duration = Duration::from_secs(1 << 32);

/// Stops every attached box, then the reaper.
pub(crate) async fn shut_down(core: &Core, limit: Duration) -> RuntimeShutdown {
    let mut report = RuntimeShutdown::default();
    core.closing.cancel();
    let deadline = Instant::now() + limit.min(MAX_TIMEOUT);
    let boxes = core.boxes.all();
    let exits = boxes.iter().map(|bx| async move {
        let target = bx.begin_shutdown();
        let outcome = match &target {
            Some(target) => Some(stop_by(target, deadline).await),
            None => None,
        };
        // If this fails, it is retried below.
        let _ = timeout(DISK_TIMEOUT, observe_exit(core, bx)).await;
        outcome
    });
    for (bx, outcome) in boxes.iter().zip(join_all(exits).await) {
        let id = bx.id().clone();
        match outcome {
            Some(true) => report.stopped.push(id),
            Some(false) => report.stuck.push(id),
            None => {}
        }
    }
    core.operations.close();
    // Every operation has been asked to stop, and has its own time limit unless a disk hangs.
    if timeout(DISK_TIMEOUT, core.operations.wait()).await.is_err() {
        tracing::warn!("timed out waiting for operations");
    }
    core.warm_shims.close().await;
    report.reaper = core.stop_reaper();
    for bx in &boxes {
        // The final drain of the reaper may have found that it has ended.
        if bx.shim().is_some_and(|shim| shim.try_exit().is_none())
            && !report.stuck.iter().any(|id| id == bx.id())
        {
            report.left_running.push(bx.id().clone());
        }
    }
    // A failed cleanup is logged and left to the next runtime.
    let cleanups = join_all(boxes.iter().map(|bx| cleanup(core, bx)));
    if timeout(DISK_TIMEOUT, cleanups).await.is_err() {
        tracing::warn!("timed out saving boxes; the next runtime recovers them");
    }
    for bx in &boxes {
        // Even if the disk has refused to save it.
        bx.report_exit();
    }
    core.removals.close();
    if timeout(DISK_TIMEOUT, core.removals.wait()).await.is_err() {
        tracing::warn!("timed out removing directories; the next runtime removes them");
    }
    core.release_home();
    report
}

/// Stops the shim. Returns whether it has ended.
async fn stop_by(target: &ShutdownTarget, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let grace = target.grace.min(left);
    let exit = terminate::stop(&target.shim, grace);
    timeout(grace.saturating_add(SIGKILL_TIMEOUT), exit)
        .await
        .is_ok()
}
