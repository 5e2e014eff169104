//! Many boxes at once, and many hands on one box.

mod common;

use std::time::Duration;

use common::boxes::{changes_up_to, dir_of, open, sleeping, started};
use common::{allow_descriptors, is_gone};
use futures::future::join_all;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, RuntimeError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_boxes_are_started_and_removed_by_force_at_once() {
    allow_descriptors(2_000);
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = join_all((0..200).map(|_| started(&runtime, sleeping()))).await;
    let metrics = runtime.metrics().await;
    assert_eq!(
        (metrics.num_running_boxes, metrics.boxes_created_total),
        (200, 200)
    );
    assert_eq!(metrics.shim_reaper_registered, 200);
    let removals = running.iter().map(|info| runtime.remove(&info.id, true));
    for removed in join_all(removals).await {
        removed.unwrap();
    }
    for info in &running {
        assert!(is_gone(info.pid.unwrap()) && is_gone(info.payload_pid.unwrap()));
        assert!(!dir_of(&home, &info.id).exists());
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
async fn many_starts_of_one_box_start_one_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let id = runtime.create(sleeping()).await.unwrap().id;
    let mut events = runtime.events();
    let starts = join_all((0..20).map(|_| runtime.start(&id))).await;
    let pids: Vec<_> = starts.into_iter().map(|info| info.unwrap().pid).collect();
    assert!(pids.windows(2).all(|pair| pair[0] == pair[1]), "{pids:?}");
    runtime.remove(&id, true).await.unwrap();
    assert_eq!(
        changes_up_to(&mut events, BoxChange::Removed).await,
        [BoxChange::Started, BoxChange::Stopped, BoxChange::Removed]
    );
    assert_eq!(runtime.metrics().await.shim_reaped, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_removals_one_removes_and_the_rest_find_nothing() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let removals = (0..10).map(|_| async {
        let outcome = runtime.remove(&running.id, true).await;
        // Whoever returns, returns when it is gone.
        assert!(is_gone(running.pid.unwrap()));
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
async fn a_removal_by_force_does_not_wait_for_a_stop_with_a_long_grace() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let deaf = "trap '' TERM; echo up; while :; do sleep 0.01; done";
    let spec = common::boxes::script(deaf).stop_grace(Duration::from_secs(100_000));
    let running = started(&runtime, spec).await;
    let (stopped, removed) = tokio::join!(runtime.stop(&running.id), async {
        common::pause().await;
        runtime.remove(&running.id, true).await
    });
    removed.unwrap();
    assert!(
        matches!(stopped, Ok(_) | Err(RuntimeError::NotFound { .. })),
        "{stopped:?}"
    );
    assert!(is_gone(running.pid.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_mixture_of_operations_on_one_box_leaves_it_whole() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    for round in 0..20 {
        let id = runtime.create(sleeping()).await.unwrap().id;
        let work = (0..12).map(|hand| {
            let (runtime, id) = (runtime.clone(), id.clone());
            tokio::spawn(async move {
                let outcome = match (round + hand) % 3 {
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
        for hand in join_all(work).await {
            hand.unwrap();
        }
        let info = runtime.info(&id).await.unwrap();
        assert_eq!(info.status == BoxStatus::Running, info.pid.is_some());
        let running = runtime.metrics().await.num_running_boxes;
        assert_eq!(running, u64::from(info.pid.is_some()));
        runtime.remove(&id, true).await.unwrap();
    }
    assert_eq!(runtime.metrics().await.boxes_failed_total, 0);
}
