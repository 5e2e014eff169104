//! Two runtimes on one home.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::boxes::{in_two_processes, open, options, sleeping, started};
use common::own_process::block_on;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{RuntimeError, VmmRuntime};

const HOLDER: &str = "SHIM_TEST_HOLDER_OF_THE_HOME";

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
async fn a_second_opener_is_told_who_has_the_home() {
    let home = PerTestBoxHome::new();
    let first = open(&home).await;
    let second = VmmRuntime::open(options(home.path())).await;
    assert_locked(second, std::process::id());
    // By another name, too.
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(home.path(), &link).unwrap();
    assert_locked(VmmRuntime::open(options(&link)).await, std::process::id());
    drop(first);
    open(&home).await;
}

#[tokio::test]
async fn a_refused_opener_disturbs_nothing() {
    let home = PerTestBoxHome::new();
    let first = open(&home).await;
    let running = started(&first, sleeping()).await;
    VmmRuntime::open(options(home.path())).await.unwrap_err();
    assert_eq!(first.info(&running.id).await.unwrap(), running);
    first.remove(&running.id, true).await.unwrap();
}

/// A child has every descriptor of its parent between its fork and its exec.
#[tokio::test]
async fn children_that_are_just_being_started_do_not_keep_the_home() {
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
        drop(open(&home).await);
    }
    busy.store(false, Ordering::Relaxed);
    for spawner in spawners {
        spawner.join().unwrap();
    }
}

#[test]
fn another_process_is_told_who_has_the_home() {
    in_two_processes(
        "another_process_is_told_who_has_the_home",
        |options| {
            block_on(async {
                let _first = VmmRuntime::open(options.clone()).await.unwrap();
                // The test binary once more, as the second opener.
                let second = std::process::Command::new(std::env::current_exe().unwrap())
                    .args(["another_process_is_refused", "--exact", "--nocapture"])
                    .env(HOLDER, std::process::id().to_string())
                    .status()
                    .unwrap();
                assert!(second.success());
            });
        },
        |_, first| assert!(first.status.success(), "{first:?}"),
    );
}

/// The second opener of the test above; of itself it has nothing to do.
#[test]
fn another_process_is_refused() {
    let Ok(holder) = std::env::var(HOLDER) else {
        return;
    };
    let home = std::env::var_os("SHIM_TEST_HOME_OF_ANOTHER_PROCESS").unwrap();
    let second = block_on(VmmRuntime::open(options(std::path::Path::new(&home))));
    assert_locked(second, holder.parse().unwrap());
}
