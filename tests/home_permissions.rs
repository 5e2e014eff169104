//! The VMM runtime refuses a home that other users can write to.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use common::DEADLINE;
use common::boxes::options;
use nix::unistd::Uid;
use vmm_runtime::{RuntimeError, VmmRuntime};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Asserts that the home is empty.
fn assert_untouched(home: &Path) {
    assert_eq!(fs::read_dir(home).unwrap().count(), 0);
}

#[tokio::test]
async fn a_home_of_another_user_is_refused() {
    if !Uid::effective().is_root() {
        // Only root can change the owner of a directory.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(65534), None).unwrap();
    let refused = VmmRuntime::open(options(&home)).await;
    assert!(
        matches!(
            refused,
            Err(RuntimeError::HomeOfAnother { owner: 65534, .. })
        ),
        "{refused:?}"
    );
    assert_untouched(&home);
}

#[tokio::test]
async fn a_home_that_others_can_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    for mode in [0o770, 0o702, 0o1777] {
        chmod(&home, mode);
        match VmmRuntime::open(options(&home)).await {
            Err(error @ RuntimeError::OpenHome { .. }) => {
                assert!(error.to_string().contains("chmod go-w"), "{error}");
                assert!(error.to_string().contains(home.to_str().unwrap()));
            }
            other => panic!("{other:?}"),
        }
        assert_untouched(&home);
    }
}

#[tokio::test]
async fn a_home_that_others_can_replace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().canonicalize().unwrap().join("parent");
    fs::create_dir_all(parent.join("inner")).unwrap();
    let home = parent.join("inner/home");
    chmod(&parent, 0o777);
    match VmmRuntime::open(options(&home)).await {
        Err(RuntimeError::OpenHome { path, .. }) => assert_eq!(path, parent),
        other => panic!("{other:?}"),
    }
    // With the sticky bit, as on /tmp, others cannot replace it.
    chmod(&parent, 0o1777);
    let runtime = VmmRuntime::open(options(&home)).await.unwrap();
    assert_eq!(
        fs::metadata(&home).unwrap().permissions().mode() & 0o777,
        0o700
    );
    runtime.shutdown(DEADLINE).await;
}

#[tokio::test]
async fn a_home_below_a_directory_of_another_user_is_refused() {
    if !Uid::effective().is_root() {
        // Only root can give a directory away.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent");
    fs::create_dir(&parent).unwrap();
    chmod(&parent, 0o755);
    chown(&parent, Some(65534), None).unwrap();
    let home = parent.join("home");
    let refused = VmmRuntime::open(options(&home)).await;
    assert!(
        matches!(refused, Err(RuntimeError::OpenHome { .. })),
        "{refused:?}"
    );

    chown(&parent, Some(0), Some(65534)).unwrap();
    chmod(&parent, 0o775);
    let refused = VmmRuntime::open(options(&home)).await;
    assert!(
        matches!(refused, Err(RuntimeError::OpenHome { .. })),
        "{refused:?}"
    );
}
