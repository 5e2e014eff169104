//! Guests that are paused.

use std::time::Duration;

use serde_json::json;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxStatus, Ending, GuestEvent, Removal, VmmRuntime, with_causes};

use crate::common::eventually;
use crate::guest::{GuestFiles, console, open_runtime, spec, start_up};

const TICKING: &str = "echo up; while :; do echo tick; sleep 0.05; done";

/// How long a guest that works may write nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// Asks QEMU for the status of the guest.
async fn status_in_qemu(runtime: &VmmRuntime, bx: &BoxInfo) -> String {
    let request = json!({"execute": "query-status"});
    let result = runtime.call(&bx.id, request).await.unwrap();
    result["status"].as_str().unwrap().to_owned()
}

/// Waits until the guest has written nothing for a while.
async fn wait_silent(bx: &BoxInfo) {
    loop {
        let before = console(bx);
        tokio::time::sleep(SILENCE).await;
        if console(bx) == before {
            return;
        }
    }
}

#[tokio::test]
async fn a_paused_guest_does_nothing_until_it_is_resumed() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest(TICKING)).detached(true)).await;
    assert_eq!(status_in_qemu(&runtime, &bx).await, "running");
    let paused = runtime.pause(&bx.id).await.unwrap();
    assert_eq!(paused.status, BoxStatus::Paused);
    assert_eq!(status_in_qemu(&runtime, &bx).await, "paused");
    let error = runtime.call(&bx.id, json!({"execute": "quit"})).await;
    let error = with_causes(&error.unwrap_err());
    assert!(error.contains("one of query-block"), "{error}");
    tokio::time::timeout(Duration::from_secs(60), wait_silent(&bx))
        .await
        .unwrap();
    drop(runtime);

    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(found.status, BoxStatus::Paused);
    let paused_at = console(&bx);
    let resumed = runtime.resume(&bx.id).await.unwrap();
    assert_eq!(resumed.status, BoxStatus::Running);
    eventually("the guest continues", || console(&bx) != paused_at).await;
    drop(runtime);

    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(found.status, BoxStatus::Running);
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_paused_guest_is_stopped_in_order() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = spec(&files.guest_with_agent()).stop_grace(Duration::from_secs(120));
    let id = runtime.create(spec).await.unwrap().id;
    runtime.start(&id).await.unwrap();
    runtime.pause(&id).await.unwrap();
    let stopped = runtime.stop(&id).await.unwrap();
    let event = GuestEvent::PoweredOff;
    assert_eq!(stopped.ending, Some(Ending::Guest { event }), "{stopped:?}");
}
