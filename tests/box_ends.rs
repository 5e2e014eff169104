//! When the end of a box is reported, no process of it is running.

mod common;

use common::boxes::{
    box_dir, exits_on_go, next_event, open_runtime, orphan_of, script, send_go, start_box,
};
use common::{kill, state_of};
use futures::StreamExt;
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxInfo, BoxSpec, BoxStatus, Ready, Removal, VmmRuntime};

/// Returns the processes that are running now. A zombie is not.
fn running(pids: &[u32]) -> Vec<(u32, char)> {
    let states = pids.iter().map(|pid| (*pid, state_of(*pid)));
    states
        .filter_map(|(pid, state)| Some((pid, state.filter(|state| *state != 'Z')?)))
        .collect()
}

/// Returns a spec whose payload and its descendant, in a session of its own, use the processor.
fn busy() -> BoxSpec {
    script(
        "setsid sh -c 'echo $$ > $VMM_BOX_DIR/orphan; while :; do :; done' & while :; do :; done",
    )
}

/// Waits for the end of the box in both ways, and checks `/proc` at the moment of each report.
async fn check_end(
    runtime: &VmmRuntime,
    home: &PerTestBoxHome,
    bx: &BoxInfo,
    end: impl AsyncFnOnce(&BoxInfo),
) -> BoxInfo {
    let pids = [
        bx.pid.unwrap(),
        bx.payload_pid.unwrap(),
        orphan_of(home, &bx.id).await,
    ];
    let events = runtime.events().filter_map(async |event| {
        let is_end = matches!(event.change, BoxChange::Stopped | BoxChange::Failed);
        is_end.then(|| running(&pids))
    });
    let mut events = std::pin::pin!(events);
    let waited = async {
        let ended = runtime.wait(&bx.id).await.unwrap();
        (running(&pids), ended)
    };
    let ((at_wait, ended), at_event, ()) = tokio::join!(waited, events.next(), end(bx));
    assert_eq!(at_wait, [], "{ended:?}");
    assert_eq!(at_event.unwrap(), [], "{ended:?}");
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_when_the_end_of_a_killed_shim_is_reported() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for _ in 0..10 {
        let bx = start_box(&runtime, busy()).await;
        let ended = check_end(&runtime, &home, &bx, async |bx| {
            kill(bx.pid.unwrap(), Signal::SIGKILL);
        });
        let ended = ended.await;
        assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
        runtime.remove(&bx.id, Removal::Ended).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_when_the_end_of_a_killed_payload_is_reported() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, busy()).await;
    let ended = check_end(&runtime, &home, &bx, async |bx| {
        kill(bx.payload_pid.unwrap(), Signal::SIGKILL);
    });
    assert_eq!(ended.await.status, BoxStatus::Failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_when_a_stop_is_reported() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, busy()).await;
    let ended = check_end(&runtime, &home, &bx, async |bx| {
        runtime.stop(&bx.id).await.unwrap();
    });
    assert_eq!(ended.await.status, BoxStatus::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_when_an_exit_is_reported() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut spec = exits_on_go(5);
    if let Some(text) = spec.payload.command.last_mut() {
        *text = format!("setsid sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; {text}");
    }
    let bx = start_box(&runtime, spec).await;
    let ended = check_end(&runtime, &home, &bx, async |bx| send_go(&home, &bx.id));
    assert_eq!(ended.await.exit_code, Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_when_a_failed_start_is_reported() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = busy().ready(Ready::Notified);
    let id = runtime.create(spec).await.unwrap().id;
    let mut events = runtime.events();
    let observe = async {
        let starting = next_event(&mut events).await;
        let orphan = orphan_of(&home, &id).await;
        let shim = starting.info.pid.unwrap();
        kill(shim, Signal::SIGKILL);
        let failed = next_event(&mut events).await;
        assert_eq!(failed.change, BoxChange::Failed);
        assert_eq!(running(&[shim, orphan]), []);
    };
    let (started, ()) = tokio::join!(runtime.start(&id), observe);
    started.unwrap_err();
    assert!(box_dir(&home, &id).exists());
}
