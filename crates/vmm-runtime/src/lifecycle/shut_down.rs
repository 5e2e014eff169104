use std::time::Duration;

use futures::future::join_all;
use shim_reaper::ShutdownReport;
use tokio::time::{Instant, timeout};

use super::{STUCK_AFTER, settle, tidy_up};
use crate::boxes::Closing;
use crate::core::Core;
use crate::shim::end;

/// What a shutdown of the runtime did, and left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeShutdown {
    /// The ids of the boxes that ran, or were being started, and have been stopped.
    pub stopped: Vec<String>,
    /// The ids of the detached boxes that go on running.
    pub left_running: Vec<String>,
    /// The ids of the boxes whose shims survived SIGKILL.
    pub stuck: Vec<String>,
    /// What the reaper says.
    pub reaper: ShutdownReport,
}

/// How long what reads and writes files may delay the end, at each of two points.
const HUNG_AFTER: Duration = Duration::from_secs(15);

/// Longer than anybody waits, and short enough to be added to an instant.
const NO_LIMIT: Duration = Duration::from_secs(1 << 32);

/// Ends every box but the detached ones, then the reaper.
pub(crate) async fn shut_down(core: &Core, limit: Duration) -> RuntimeShutdown {
    let mut report = RuntimeShutdown::default();
    core.closing.cancel();
    let deadline = Instant::now() + limit.min(NO_LIMIT);
    let boxes = core.boxes.all();
    let endings = boxes.iter().map(|ended| async move {
        let closing = ended.close();
        let outcome = match &closing {
            Some(closing) => Some(end_by(closing, deadline).await),
            None => None,
        };
        // An end that cannot be settled now is below.
        let _ = timeout(HUNG_AFTER, settle(core, ended)).await;
        outcome
    });
    for (ended, outcome) in boxes.iter().zip(join_all(endings).await) {
        let id = ended.id().to_owned();
        match outcome {
            Some(true) => report.stopped.push(id),
            Some(false) => report.stuck.push(id),
            None => {}
        }
    }
    core.operations.close();
    // They have been told to end, and each has a limit of its own, but for a disk that hangs.
    if timeout(HUNG_AFTER, core.operations.wait()).await.is_err() {
        tracing::warn!("not all that was under way has ended; it is given up");
    }
    report.reaper = core.stop_reaping();
    for ended in &boxes {
        // The reaper's last look may have found it ended.
        if ended.shim().is_some_and(|shim| shim.try_exit().is_none())
            && !report.stuck.iter().any(|id| id == ended.id())
        {
            report.left_running.push(ended.id().to_owned());
        }
    }
    // What cannot be ended is logged, and left to the next runtime.
    let tidied = join_all(boxes.iter().map(|ended| tidy_up(core, ended)));
    if timeout(HUNG_AFTER, tidied).await.is_err() {
        tracing::warn!("not all boxes are on disk as they are; the next runtime looks again");
    }
    for ended in &boxes {
        // Whatever the disk does.
        ended.report_end();
    }
    core.retire();
    report
}

/// False if it is still there.
async fn end_by(closing: &Closing, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let grace = closing.grace.min(left);
    let ended = end::gracefully(&closing.shim, grace);
    timeout(grace.saturating_add(STUCK_AFTER), ended)
        .await
        .is_ok()
}
