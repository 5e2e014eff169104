use std::fs;

use futures::future::join_all;
use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::Daemon;

const BURST: usize = 200;

/// More than the daemon has at rest, and far fewer than one per request.
const MAX_MORE_THREADS: usize = 16;

#[tokio::test]
async fn burst_of_requests_leaves_no_thread_per_request() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let before = threads(daemon.pid());
    let request = CreateBoxRequest::of("idle");
    let keys: Vec<_> = (0..BURST)
        .map(|number| format!("{number:08x}-0000-4000-8000-000000000000"))
        .collect();
    let creations = keys
        .iter()
        .map(|key| daemon.client.create_once(&request, key));
    let created = join_all(creations).await;
    let removals = created.iter().map(|bx| {
        let id = &bx.as_ref().unwrap().box_id;
        daemon.client.remove(id, true)
    });
    for removed in join_all(removals).await {
        removed.unwrap();
    }
    // Threads that are idle end after seconds.
    let after = threads(daemon.pid());
    assert!(
        after <= before + MAX_MORE_THREADS,
        "{before} threads before, {after} after"
    );
    daemon.shut_down().await;
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}
