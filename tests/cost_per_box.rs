//! What a box costs does not depend on how many others there are.

mod common;

use common::boxes::{open_runtime, remove_all, sleeping, start_box};
use common::control_groups::note_skipped;
use common::own_process::{block_on, in_own_process};
use common::work::reads;
use common::{kill, shell};
use futures::future::join_all;
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{ControlGroup, VmmRuntime};

/// Returns the reads that a crash of a box takes, with the cleanup: the fewest of some, because
/// other tests start processes too. Calls `prepare` before each crash.
async fn reads_of_a_crash<T>(runtime: &VmmRuntime, prepare: impl Fn() -> T) -> u64 {
    let mut fewest = u64::MAX;
    for _ in 0..8 {
        let bx = start_box(runtime, sleeping()).await;
        let _prepared = prepare();
        let before = reads();
        kill(bx.pid.unwrap(), Signal::SIGKILL);
        runtime.wait(&bx.id).await.unwrap();
        runtime.remove(&bx.id, false).await.unwrap();
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
            let alone = reads_of_a_crash(&runtime, || ()).await;
            join_all((0..50).map(|_| start_box(&runtime, sleeping()))).await;
            let beside_others = reads_of_a_crash(&runtime, || ()).await;
            // A scan of all processes would read at least six times per box.
            assert!(
                beside_others < alone + 150,
                "{alone} reads alone, {beside_others} beside others"
            );
            remove_all(&runtime).await;
        });
    });
}

/// Processes that are not children of this one, as the orphans of a payload are not.
struct Adopted(Vec<u32>);

impl Adopted {
    fn spawn() -> Self {
        let mut parent =
            shell("for i in $(seq 50); do sleep 1000 > /dev/null 2>&1 & echo $!; done");
        let pids = parent.output().unwrap().stdout;
        let pids = String::from_utf8(pids).unwrap();
        Self(pids.lines().map(|pid| pid.parse().unwrap()).collect())
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        for pid in &self.0 {
            kill(*pid, Signal::SIGKILL);
        }
    }
}

#[test]
fn a_crash_reads_no_process_outside_of_the_control_group() {
    in_own_process(
        "a_crash_reads_no_process_outside_of_the_control_group",
        || {
            if let Err(error) = ControlGroup::check() {
                return note_skipped(&error);
            }
            block_on(async {
                let home = PerTestBoxHome::new();
                let runtime = open_runtime(&home).await;
                let alone = reads_of_a_crash(&runtime, || ()).await;
                let beside_others = reads_of_a_crash(&runtime, Adopted::spawn).await;
                // Whether each is an orphan would take at least six reads.
                assert!(
                    beside_others < alone + 150,
                    "{alone} reads alone, {beside_others} beside others"
                );
            });
        },
    );
}
