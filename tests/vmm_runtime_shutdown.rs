//! The shutdown of a VMM runtime.

mod common;

use std::time::{Duration, Instant};

use common::boxes::{changes_up_to, ignores_sigterm, open_runtime, options, sleeping, start_box};
use common::{eventually, is_gone};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Ready, Removal, RuntimeError, StartError, VmmRuntime};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn shutdown_stops_attached_boxes_and_leaves_detached_ones() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let attached = start_box(&runtime, sleeping()).await;
    let detached = start_box(&runtime, sleeping().detached(true)).await;
    let mut events = runtime.events();
    let report = runtime.shutdown(SHUTDOWN_TIMEOUT).await;
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

    let runtime = open_runtime(&home).await;
    let info = runtime.info(&attached.id).await.unwrap();
    assert_eq!((info.status, info.signal), (BoxStatus::Stopped, Some(15)));
    runtime.remove(&detached.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn all_callers_get_the_same_report_and_later_operations_are_rejected() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    let (one, two) = tokio::join!(
        runtime.shutdown(SHUTDOWN_TIMEOUT),
        runtime.shutdown(Duration::ZERO)
    );
    assert_eq!((&one, one.stopped.len()), (&two, 1));
    assert_eq!(runtime.shutdown_sync(SHUTDOWN_TIMEOUT), one);
    assert!(matches!(
        runtime.create(sleeping()).await,
        Err(RuntimeError::Closed)
    ));
    assert!(matches!(
        runtime.start(&id).await,
        Err(RuntimeError::Closed)
    ));
    assert!(matches!(
        runtime.remove(&id, Removal::Force).await,
        Err(RuntimeError::Closed)
    ));
    // Queries still work.
    assert_eq!(runtime.info(&id).await.unwrap().status, BoxStatus::Stopped);
    assert!(!runtime.metrics().await.shim_reaper_alive);
}

#[tokio::test]
async fn shutdown_kills_a_box_at_its_timeout() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(
        &runtime,
        ignores_sigterm().stop_grace(Duration::from_secs(1000)),
    )
    .await;
    let start = Instant::now();
    let report = runtime.shutdown(Duration::from_millis(100)).await;
    assert!(start.elapsed() < SHUTDOWN_TIMEOUT);
    assert_eq!(report.stopped, std::slice::from_ref(&bx.id));
    assert!(is_gone(bx.pid.unwrap()) && is_gone(bx.payload_pid.unwrap()));
    let info = runtime.info(&bx.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Stopped);
}

#[tokio::test]
async fn shutdown_accepts_the_longest_timeout() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let report = runtime.shutdown(Duration::MAX).await;
    assert_eq!(report.stopped, [bx.id]);
}

#[tokio::test]
async fn shutdown_continues_after_its_future_and_handle_are_dropped() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let mut events = runtime.events();
    {
        let mut shutdown = std::pin::pin!(runtime.shutdown(SHUTDOWN_TIMEOUT));
        assert!(futures::poll!(shutdown.as_mut()).is_pending());
    }
    drop(runtime);
    assert_eq!(
        changes_up_to(&mut events, BoxChange::Stopped).await,
        [BoxChange::Stopped]
    );
    assert!(events.next().await.is_none());
    assert!(is_gone(bx.pid.unwrap()));
}

#[tokio::test]
async fn a_cancelled_token_shuts_down_the_vmm_runtime() {
    let home = PerTestBoxHome::new();
    let token = CancellationToken::new();
    let options = options(home.path())
        .shutdown_token(token.clone())
        .shutdown_timeout(SHUTDOWN_TIMEOUT);
    let runtime = VmmRuntime::open(options).await.unwrap();
    let bx = start_box(&runtime, sleeping()).await;
    let events = runtime.events();
    token.cancel();
    let changes: Vec<_> = events.map(|event| event.change).collect().await;
    assert_eq!(changes, [BoxChange::Stopped]);
    assert!(is_gone(bx.pid.unwrap()));
    assert_eq!(runtime.shutdown(SHUTDOWN_TIMEOUT).await.stopped, [bx.id]);
}

#[tokio::test]
async fn shutdown_does_not_cancel_the_token_of_the_caller() {
    let home = PerTestBoxHome::new();
    let token = CancellationToken::new();
    let options = options(home.path()).shutdown_token(token.clone());
    let runtime = VmmRuntime::open(options).await.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    assert!(!token.is_cancelled());
}

#[tokio::test]
async fn shutdown_interrupts_a_start() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let starting = sleeping().ready(Ready::Notified);
    let id = runtime.create(starting).await.unwrap().id;
    let start = runtime.start(&id);
    let shutdown = async {
        let record = common::boxes::box_dir(&home, &id).join("shim.pid");
        eventually("the shim starts", || record.exists()).await;
        runtime.shutdown(SHUTDOWN_TIMEOUT).await
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

/// On a single-threaded tokio runtime, which `shutdown_sync` blocks.
#[tokio::test(flavor = "current_thread")]
async fn shutdown_sync_works_inside_a_tokio_runtime_during_a_shutdown() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    {
        let mut shutdown = std::pin::pin!(runtime.shutdown(SHUTDOWN_TIMEOUT));
        assert!(futures::poll!(shutdown.as_mut()).is_pending());
    }
    let report = runtime.shutdown_sync(SHUTDOWN_TIMEOUT);
    assert_eq!(report.stopped, [bx.id]);
    assert!(is_gone(bx.pid.unwrap()));
}

#[test]
fn shutdown_sync_works_outside_a_tokio_runtime() {
    let home = PerTestBoxHome::new();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let (runtime, bx) = tokio.block_on(async {
        let runtime = open_runtime(&home).await;
        let bx = start_box(&runtime, sleeping()).await;
        (runtime, bx)
    });
    drop(tokio);
    assert_eq!(runtime.shutdown_sync(SHUTDOWN_TIMEOUT).stopped, [bx.id]);
    assert!(is_gone(bx.pid.unwrap()));
}

#[tokio::test]
async fn shutdown_frees_the_home_although_the_handle_exists() {
    let home = PerTestBoxHome::new();
    let first = open_runtime(&home).await;
    first.shutdown(SHUTDOWN_TIMEOUT).await;
    let second = open_runtime(&home).await;
    assert!(second.list().await.is_empty());
    drop(first);
    assert!(matches!(
        VmmRuntime::open(options(home.path())).await,
        Err(RuntimeError::Locked { .. })
    ));
}
