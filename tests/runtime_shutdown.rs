//! The orderly end of a runtime.

mod common;

use std::time::{Duration, Instant};

use common::boxes::{changes_up_to, open, options, script, sleeping, started};
use common::{eventually, is_gone};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Ready, RuntimeError, StartError, VmmRuntime};

const LIMIT: Duration = Duration::from_secs(60);

fn deaf() -> vmm_runtime::BoxSpec {
    script("trap '' TERM; echo up; while :; do sleep 0.01; done")
        .stop_grace(Duration::from_secs(1000))
}

#[tokio::test]
async fn attached_boxes_are_stopped_and_detached_ones_go_on() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let attached = started(&runtime, sleeping()).await;
    let detached = started(&runtime, sleeping().detached(true)).await;
    let mut events = runtime.events();
    let report = runtime.shutdown(LIMIT).await;
    assert_eq!(report.stopped, std::slice::from_ref(&attached.id));
    assert_eq!(report.left_running, std::slice::from_ref(&detached.id));
    assert!(report.stuck.is_empty());
    assert_eq!(report.reaper.still_running, [detached.pid.unwrap()]);
    assert!(is_gone(attached.pid.unwrap()) && is_gone(attached.payload_pid.unwrap()));
    assert!(!is_gone(detached.pid.unwrap()));
    assert_eq!(
        changes_up_to(&mut events, BoxChange::Stopped).await,
        [BoxChange::Stopped]
    );
    assert!(events.next().await.is_none());

    let runtime = open(&home).await;
    let info = runtime.info(&attached.id).await.unwrap();
    assert_eq!((info.status, info.signal), (BoxStatus::Stopped, Some(15)));
    runtime.remove(&detached.id, true).await.unwrap();
}

#[tokio::test]
async fn everybody_gets_the_same_report_and_nothing_else_begins() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let id = started(&runtime, sleeping()).await.id;
    let (one, two) = tokio::join!(runtime.shutdown(LIMIT), runtime.shutdown(Duration::ZERO));
    assert_eq!((&one, one.stopped.len()), (&two, 1));
    assert_eq!(runtime.shutdown_sync(LIMIT), one);
    assert!(matches!(
        runtime.create(sleeping()).await,
        Err(RuntimeError::Closed)
    ));
    assert!(matches!(
        runtime.start(&id).await,
        Err(RuntimeError::Closed)
    ));
    assert!(matches!(
        runtime.remove(&id, true).await,
        Err(RuntimeError::Closed)
    ));
    // What it was can still be asked.
    assert_eq!(runtime.info(&id).await.unwrap().status, BoxStatus::Stopped);
    assert!(!runtime.metrics().await.shim_reaper_alive);
}

#[tokio::test]
async fn a_box_that_outstays_the_limit_is_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, deaf()).await;
    let began = Instant::now();
    let report = runtime.shutdown(Duration::from_millis(100)).await;
    assert!(began.elapsed() < LIMIT);
    assert_eq!(report.stopped, std::slice::from_ref(&running.id));
    assert!(is_gone(running.pid.unwrap()) && is_gone(running.payload_pid.unwrap()));
    let info = runtime.info(&running.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Stopped);
}

#[tokio::test]
async fn there_need_be_no_limit() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let report = runtime.shutdown(Duration::MAX).await;
    assert_eq!(report.stopped, [running.id]);
}

#[tokio::test]
async fn a_shutdown_goes_on_without_its_future_and_its_runtime() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let mut events = runtime.events();
    {
        let mut half_way = std::pin::pin!(runtime.shutdown(LIMIT));
        assert!(futures::FutureExt::now_or_never(half_way.as_mut()).is_none());
    }
    drop(runtime);
    assert_eq!(
        changes_up_to(&mut events, BoxChange::Stopped).await,
        [BoxChange::Stopped]
    );
    assert!(events.next().await.is_none());
    assert!(is_gone(running.pid.unwrap()));
}

#[tokio::test]
async fn the_token_shuts_the_runtime_down() {
    let home = PerTestBoxHome::new();
    let token = CancellationToken::new();
    let options = options(home.path())
        .shutdown_token(token.clone())
        .shutdown_timeout(LIMIT);
    let runtime = VmmRuntime::open(options).await.unwrap();
    let running = started(&runtime, sleeping()).await;
    let events = runtime.events();
    token.cancel();
    let changes: Vec<_> = events.map(|event| event.change).collect().await;
    assert_eq!(changes, [BoxChange::Stopped]);
    assert!(is_gone(running.pid.unwrap()));
    assert_eq!(runtime.shutdown(LIMIT).await.stopped, [running.id]);
}

#[tokio::test]
async fn shutting_down_does_not_cancel_the_users_token() {
    let home = PerTestBoxHome::new();
    let token = CancellationToken::new();
    let options = options(home.path()).shutdown_token(token.clone());
    let runtime = VmmRuntime::open(options).await.unwrap();
    runtime.shutdown(LIMIT).await;
    assert!(!token.is_cancelled());
}

#[tokio::test]
async fn a_start_that_is_under_way_is_given_up() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let starting = sleeping().ready(Ready::Notified);
    let id = runtime.create(starting).await.unwrap().id;
    let start = runtime.start(&id);
    let shutdown = async {
        let record = common::boxes::dir_of(&home, &id).join("shim.pid");
        eventually("the shim", || record.exists()).await;
        runtime.shutdown(LIMIT).await
    };
    let (started, report) = tokio::join!(start, shutdown);
    match started {
        Err(RuntimeError::Start {
            source: StartError::Interrupted,
            ..
        })
        | Err(RuntimeError::Closed) => {}
        other => panic!("{other:?}"),
    }
    assert!(report.stuck.is_empty());
}

/// On the one thread of a runtime, which can therefore help with nothing.
#[tokio::test(flavor = "current_thread")]
async fn shutdown_sync_works_inside_of_a_runtime_and_beside_a_shutdown_half_way() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    {
        let mut half_way = std::pin::pin!(runtime.shutdown(LIMIT));
        assert!(futures::FutureExt::now_or_never(half_way.as_mut()).is_none());
    }
    let report = runtime.shutdown_sync(LIMIT);
    assert_eq!(report.stopped, [running.id]);
    assert!(is_gone(running.pid.unwrap()));
}

#[test]
fn shutdown_sync_works_outside_of_any_runtime() {
    let home = PerTestBoxHome::new();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let (runtime, running) = tokio.block_on(async {
        let runtime = open(&home).await;
        let running = started(&runtime, sleeping()).await;
        (runtime, running)
    });
    drop(tokio);
    assert_eq!(runtime.shutdown_sync(LIMIT).stopped, [running.id]);
    assert!(is_gone(running.pid.unwrap()));
}

#[tokio::test]
async fn the_home_is_free_after_the_shutdown_although_the_handle_is_kept() {
    let home = PerTestBoxHome::new();
    let first = open(&home).await;
    first.shutdown(LIMIT).await;
    let second = open(&home).await;
    assert!(second.list().await.is_empty());
    drop(first);
    assert!(matches!(
        VmmRuntime::open(options(home.path())).await,
        Err(RuntimeError::Locked { .. })
    ));
}
