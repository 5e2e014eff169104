//! Files, statistics and engine-specific requests of boxes whose payload is not a guest.

mod common;

use common::boxes::{open_runtime, script, sleeping, start_box};
use common::control_groups::groups_of;
use common::eventually;
use serde_json::json;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    ExecError, GetSpec, PutSpec, Removal, RequestErrorKind, RuntimeError, with_causes,
};

fn assert_unsupported(error: &RuntimeError) {
    let RuntimeError::Exec { source, .. } = error else {
        panic!("{error:?}");
    };
    assert!(
        matches!(
            source,
            ExecError::Refused(error) if error.kind == RequestErrorKind::Unsupported
        ),
        "{}",
        with_causes(error)
    );
}

#[tokio::test]
async fn a_process_box_transfers_no_files_and_takes_no_engine_specific_request() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    for _ in 0..2 {
        let put = runtime.put(&id, PutSpec::new("/tmp"), &[0; 1024][..]);
        assert_unsupported(&put.await.unwrap_err());
        let get = runtime.get(&id, GetSpec::new("/etc/passwd"));
        assert_unsupported(&get.await.unwrap_err());
        let call = runtime.call(&id, json!({"execute": "query-status"}));
        assert_unsupported(&call.await.unwrap_err());
    }
    // The refusals are not executions.
    assert!(runtime.executions(&id).await.unwrap().is_empty());

    runtime.stop(&id).await.unwrap();
    let get = runtime.get(&id, GetSpec::new("/etc/passwd")).await;
    assert!(matches!(get, Err(RuntimeError::NotRunning { .. })));
    let call = runtime.call(&id, json!(null)).await;
    assert!(matches!(call, Err(RuntimeError::NotRunning { .. })));
    let get = runtime.get("unknown", GetSpec::new("/etc/passwd")).await;
    assert!(matches!(get, Err(RuntimeError::NotFound { .. })));
}

#[tokio::test]
async fn the_stats_of_a_process_box_are_those_of_the_host() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let busy = "sleep 1000 & sleep 1000 & while :; do :; done";
    let spec = script(busy).cpus(1).memory_mib(64);
    let id = start_box(&runtime, spec).await.id;
    eventually("three processes use CPU time", || {
        let stats = futures::executor::block_on(runtime.stats(&id)).unwrap();
        assert_eq!(stats.guest, None);
        let usage = stats.usage;
        usage.processes == Some(3) && usage.cpu_time.is_some_and(|time| !time.is_zero())
    })
    .await;
    if groups_of(&home, &id).is_some() {
        let memory = runtime.stats(&id).await.unwrap().usage.memory_bytes;
        // The resident memory of the shim alone is larger than that of the payload.
        assert!(memory.is_some_and(|bytes| bytes < 3 << 20), "{memory:?}");
    }
    runtime.remove(&id, Removal::Force).await.unwrap();
}
