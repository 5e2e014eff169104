//! Operations on many boxes at once, and concurrent operations on one box.

mod common;

use std::time::Duration;

use common::boxes::{box_dir, changes_up_to, open_runtime, sleeping, start_box};
use common::{allow_descriptors, is_gone};
use futures::future::join_all;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Removal, RuntimeError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_boxes_start_and_are_removed_at_once() {
    allow_descriptors(2_000);
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let running = join_all((0..200).map(|_| start_box(&runtime, sleeping()))).await;
    let metrics = runtime.metrics().await;
    assert_eq!(
        (metrics.num_running_boxes, metrics.boxes_created_total),
        (200, 200)
    );
    assert_eq!(metrics.shim_reaper_registered, 200);
    let removals = running
        .iter()
        .map(|info| runtime.remove(&info.id, Removal::Force));
    for removed in join_all(removals).await {
        removed.unwrap();
    }
    for info in &running {
        assert!(is_gone(info.pid.unwrap()) && is_gone(info.payload_pid.unwrap()));
        assert!(!box_dir(&home, &info.id).exists());
    }
    let metrics = runtime.metrics().await;
    assert_eq!(
        (metrics.num_running_boxes, metrics.boxes_failed_total),
        (0, 0)
    );
    assert_eq!(
        (metrics.shim_reaped, metrics.shim_reaper_registered),
        (200, 0)
    );
    assert_eq!(metrics.shim_reaper_vanished, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_starts_of_one_box_share_one_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = runtime.create(sleeping()).await.unwrap().id;
    let mut events = runtime.events();
    let starts = join_all((0..20).map(|_| runtime.start(&id))).await;
    let pids: Vec<_> = starts.into_iter().map(|info| info.unwrap().pid).collect();
    assert!(pids.windows(2).all(|pair| pair[0] == pair[1]), "{pids:?}");
    runtime.remove(&id, Removal::Force).await.unwrap();
    assert_eq!(
        changes_up_to(&mut events, BoxChange::Removed).await,
        [
            BoxChange::Starting,
            BoxChange::Started,
            BoxChange::Stopped,
            BoxChange::Removed
        ]
    );
    assert_eq!(runtime.metrics().await.shim_reaped, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_concurrent_removals_succeeds_and_the_others_find_no_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let removals = (0..10).map(|_| async {
        let outcome = runtime.remove(&bx.id, Removal::Force).await;
        // No removal returns before the shim is gone.
        assert!(is_gone(bx.pid.unwrap()));
        outcome
    });
    let removals = join_all(removals).await;
    let removed = removals.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(removed, 1);
    let rest = removals.into_iter().filter_map(Result::err);
    for error in rest {
        assert!(matches!(error, RuntimeError::NotFound { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_removal_does_not_wait_for_a_stop_with_a_long_grace_period() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = common::boxes::ignores_sigterm().stop_grace(Duration::from_secs(100_000));
    let bx = start_box(&runtime, spec).await;
    let (stopped, removed) = tokio::join!(runtime.stop(&bx.id), async {
        common::pause().await;
        runtime.remove(&bx.id, Removal::Force).await
    });
    removed.unwrap();
    assert!(
        matches!(stopped, Ok(_) | Err(RuntimeError::NotFound { .. })),
        "{stopped:?}"
    );
    assert!(is_gone(bx.pid.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_operations_leave_a_box_consistent() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for round in 0..20 {
        let id = runtime.create(sleeping()).await.unwrap().id;
        let tasks = (0..12).map(|i| {
            let (runtime, id) = (runtime.clone(), id.clone());
            tokio::spawn(async move {
                let outcome = match (round + i) % 3 {
                    0 => runtime.start(&id).await.map(drop),
                    1 => runtime.stop(&id).await.map(drop),
                    _ => runtime.info(&id).await.map(drop),
                };
                match outcome {
                    Ok(()) | Err(RuntimeError::Start { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            })
        });
        for result in join_all(tasks).await {
            result.unwrap();
        }
        let info = runtime.info(&id).await.unwrap();
        assert_eq!(info.status == BoxStatus::Running, info.pid.is_some());
        let running = runtime.metrics().await.num_running_boxes;
        assert_eq!(running, u64::from(info.pid.is_some()));
        runtime.remove(&id, Removal::Force).await.unwrap();
    }
    assert_eq!(runtime.metrics().await.boxes_failed_total, 0);
}
