//! What a box costs does not depend on how many others there are.

mod common;

use common::boxes::{open_runtime, remove_all, sleeping, start_box};
use common::kill;
use common::own_process::{block_on, in_own_process};
use common::work::reads;
use futures::future::join_all;
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{Removal, VmmRuntime};

/// Returns the reads that a crash of a box takes, with the cleanup: the fewest of some, because
/// other tests start processes too.
async fn reads_of_a_crash(runtime: &VmmRuntime) -> u64 {
    let mut fewest = u64::MAX;
    for _ in 0..8 {
        let bx = start_box(runtime, sleeping()).await;
        let before = reads();
        kill(bx.pid.unwrap(), Signal::SIGKILL);
        runtime.wait(&bx.id).await.unwrap();
        runtime.remove(&bx.id, Removal::Ended).await.unwrap();
        fewest = fewest.min(reads() - before);
    }
    fewest
}

#[test]
fn a_crash_reads_no_file_per_other_box() {
    in_own_process("a_crash_reads_no_file_per_other_box", || {
        block_on(async {
            let home = PerTestBoxHome::new();
            let runtime = open_runtime(&home).await;
            let alone = reads_of_a_crash(&runtime).await;
            join_all((0..50).map(|_| start_box(&runtime, sleeping()))).await;
            let beside_others = reads_of_a_crash(&runtime).await;
            // A scan of all processes would read at least six times per box.
            assert!(
                beside_others < alone + 150,
                "{alone} reads alone, {beside_others} beside others"
            );
            remove_all(&runtime).await;
        });
    });
}
