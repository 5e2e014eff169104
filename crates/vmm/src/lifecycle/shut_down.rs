use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use shim_reaper::ShutdownReport;
use tokio::time::{Instant, timeout};

use super::{STUCK_AFTER, tidy_up};
use crate::boxes::{Closing, MicroBox};
use crate::core::Core;
use crate::process::keep_collecting;
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

/// Ends every box but the detached ones, then the reaper.
pub(crate) async fn shut_down(core: &Core, limit: Duration) -> RuntimeShutdown {
    let mut report = RuntimeShutdown::default();
    core.closing.cancel();
    let deadline = Instant::now() + limit;
    let boxes = core.boxes.all();
    let endings = boxes.iter().map(|ended| async move {
        let closing = ended.close();
        let outcome = match &closing {
            Some(closing) => Some(end_by(closing, deadline).await),
            None => None,
        };
        ended.settle();
        outcome
    });
    for (ended, outcome) in boxes.iter().zip(join_all(endings).await) {
        let id = ended.id().to_owned();
        match outcome {
            Some(true) => report.stopped.push(id),
            Some(false) => report.stuck.push(id),
            None if ended.shim().is_some() => report.left_running.push(id),
            None => {}
        }
    }
    join_all(boxes.iter().map(|ended| tidy(core, ended))).await;
    core.token.cancel();
    report.reaper = core.reaper.shutdown().await;
    keep_collecting(&report.reaper.still_running);
    core.herald.close();
    core.unlock();
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

/// In its turn where that can be had: whoever has it may be a task that no longer runs.
async fn tidy(core: &Core, ended: &Arc<MicroBox>) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let _turn = timeout(PATIENCE, ended.turn.lock()).await;
    tidy_up(core, ended).await;
}
