//! A process that SIGSTOP has stopped handles SIGTERM as soon as it is asked to end.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DEADLINE, eventually, shell, state_of};
use shim_reaper::{ReaperBuilder, ShimHandle, ShimReaper, SpawnOptions};

in_both_modes!(
    a_stopped_shim_handles_sigterm,
    a_stopped_group_handles_sigterm,
    stopped_shims_handle_sigterm,
);

/// Starts a shim that has stopped itself, and exits with 7 when it handles SIGTERM.
async fn stopped_shim(reaper: &ShimReaper, options: SpawnOptions) -> ShimHandle {
    let script = shell("trap 'exit 7' TERM; kill -STOP $$; exec sleep 1000");
    let shim = reaper.spawn_with(script, options.kill_on_drop(true));
    let shim = shim.unwrap();
    eventually("the shim is stopped", || state_of(shim.id()) == Some('T')).await;
    shim
}

async fn a_stopped_shim_handles_sigterm(builder: ReaperBuilder) {
    let shim = stopped_shim(&builder.start(), SpawnOptions::new()).await;
    assert_eq!(shim.stop(DEADLINE).await.unwrap().code(), Some(7));
}

async fn a_stopped_group_handles_sigterm(builder: ReaperBuilder) {
    let options = SpawnOptions::new().process_group(0);
    let shim = stopped_shim(&builder.start(), options).await;
    assert_eq!(shim.stop_group(DEADLINE).await.unwrap().code(), Some(7));
}

async fn stopped_shims_handle_sigterm(builder: ReaperBuilder) {
    let reaper = builder.start();
    let options = SpawnOptions::new();
    let alone = stopped_shim(&reaper, options).await;
    let leader = stopped_shim(&reaper, options.process_group(0)).await;
    let report = reaper.shutdown_stopping(DEADLINE).await;
    assert_eq!(report.stopped, 2);
    assert!(report.killed.is_empty(), "{report:?}");
    for shim in [alone, leader] {
        assert_eq!(shim.await.unwrap().code(), Some(7));
    }
}
