//! One VMM runtime at a time can open a home.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::boxes::{HOME_VAR, in_two_processes, open_runtime, options, sleeping, start_box};
use common::own_process::block_on;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{Removal, RuntimeError, VmmRuntime};

/// The variable that passes the pid of the holder to the second process.
const HOLDER_VAR: &str = "SHIM_TEST_HOLDER_OF_THE_HOME";

fn assert_locked(second: Result<VmmRuntime, RuntimeError>, by: u32) {
    match second {
        Err(error @ RuntimeError::Locked { holder, .. }) => {
            assert_eq!(holder, Some(by));
            assert!(error.to_string().contains(&by.to_string()), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_second_runtime_gets_the_pid_of_the_holder() {
    let home = PerTestBoxHome::new();
    let first = open_runtime(&home).await;
    let second = VmmRuntime::open(options(home.path())).await;
    assert_locked(second, std::process::id());
    // Through a symbolic link, too.
    let other_dir = tempfile::tempdir().unwrap();
    let link = other_dir.path().join("link");
    std::os::unix::fs::symlink(home.path(), &link).unwrap();
    assert_locked(VmmRuntime::open(options(&link)).await, std::process::id());
    drop(first);
    open_runtime(&home).await;
}

#[tokio::test]
async fn a_refused_runtime_does_not_affect_the_first_one() {
    let home = PerTestBoxHome::new();
    let first = open_runtime(&home).await;
    let bx = start_box(&first, sleeping()).await;
    VmmRuntime::open(options(home.path())).await.unwrap_err();
    assert_eq!(first.info(&bx.id).await.unwrap(), bx);
    first.remove(&bx.id, Removal::Force).await.unwrap();
}

/// Between its fork and its exec a child has every descriptor of its parent.
#[tokio::test]
async fn children_between_fork_and_exec_do_not_keep_the_lock() {
    let home = PerTestBoxHome::new();
    let busy = Arc::new(AtomicBool::new(true));
    let spawners: Vec<_> = (0..3)
        .map(|_| {
            let busy = Arc::clone(&busy);
            std::thread::spawn(move || {
                while busy.load(Ordering::Relaxed) {
                    std::process::Command::new("true").status().unwrap();
                }
            })
        })
        .collect();
    for _ in 0..100 {
        drop(open_runtime(&home).await);
    }
    busy.store(false, Ordering::Relaxed);
    for spawner in spawners {
        spawner.join().unwrap();
    }
}

#[test]
fn a_second_process_gets_the_pid_of_the_holder() {
    in_two_processes(
        "a_second_process_gets_the_pid_of_the_holder",
        |options| {
            block_on(async {
                let _first = VmmRuntime::open(options.clone()).await.unwrap();
                // This test binary, as the second process.
                let second = std::process::Command::new(std::env::current_exe().unwrap())
                    .args(["second_process", "--exact", "--nocapture"])
                    .env(HOLDER_VAR, std::process::id().to_string())
                    .status()
                    .unwrap();
                assert!(second.success());
            });
        },
        |_, first| assert!(first.status.success(), "{first:?}"),
    );
}

/// The second process of the test above. Does nothing by itself.
#[test]
fn second_process() {
    let Ok(holder) = std::env::var(HOLDER_VAR) else {
        return;
    };
    let home = std::env::var_os(HOME_VAR).unwrap();
    let second = block_on(VmmRuntime::open(options(std::path::Path::new(&home))));
    assert_locked(second, holder.parse().unwrap());
}
