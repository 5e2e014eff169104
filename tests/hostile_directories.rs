//! Payloads that fill their box's directory with what is hard to remove.

mod common;

use std::env;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use common::boxes::{dir_of, open, sleeping};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, setuid};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{RuntimeOptions, VmmRuntime};

/// More levels than fit on a stack, and than a process may have descriptors.
const DEEP: usize = 14_000;

/// Enough for a runtime, and far fewer than there are levels.
const DESCRIPTORS: u64 = 64;

/// As a payload does it: its path would be too long for any system call.
fn dig(dir: &Path) {
    let before = env::current_dir().unwrap();
    env::set_current_dir(dir).unwrap();
    for _ in 0..DEEP {
        fs::create_dir("d").unwrap();
        env::set_current_dir("d").unwrap();
    }
    env::set_current_dir(before).unwrap();
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().count() == 0
}

#[test]
fn a_box_with_a_deep_tree_is_removed_with_few_descriptors() {
    in_own_process(
        "a_box_with_a_deep_tree_is_removed_with_few_descriptors",
        || {
            let home = PerTestBoxHome::new();
            setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).unwrap();
            block_on(async {
                let runtime = open(&home).await;
                let id = runtime.create(sleeping()).await.unwrap().id;
                dig(&dir_of(&home, &id));
                runtime.remove(&id, true).await.unwrap();
                let boxes = home.path().join("boxes");
                eventually("the end of its directory", || is_empty(&boxes)).await;
                runtime.shutdown(DEADLINE).await;
            });
        },
    );
}

#[test]
fn a_deep_remnant_does_not_stop_an_opening() {
    in_own_process("a_deep_remnant_does_not_stop_an_opening", || {
        let home = PerTestBoxHome::new();
        block_on(async {
            open(&home).await.shutdown(DEADLINE).await;
            let boxes = home.path().join("boxes");
            for name in [".removing-a", ".creating-b"] {
                fs::create_dir(boxes.join(name)).unwrap();
                dig(&boxes.join(name));
            }
            let runtime = open(&home).await;
            runtime.create(sleeping()).await.unwrap();
            eventually("the end of the remnants", || {
                fs::read_dir(&boxes).unwrap().count() == 1
            })
            .await;
            runtime.shutdown(DEADLINE).await;
        });
    });
}

#[test]
fn what_is_mounted_in_a_box_is_left_alone_and_the_rest_is_removed() {
    in_own_process(
        "what_is_mounted_in_a_box_is_left_alone_and_the_rest_is_removed",
        || {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            let unshared = unshare(CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(None::<&str>, "/", None::<&str>, private, None::<&str>));
            if let Err(error) = unshared {
                eprintln!("SKIPPED: mounting is not permitted here: {error}");
                return;
            }
            // On the same file system, so that only the mount tells them apart.
            let elsewhere = tempfile::tempdir().unwrap();
            fs::create_dir(elsewhere.path().join("kept")).unwrap();
            let home = PerTestBoxHome::new();
            let bind = |at: &Path| {
                fs::create_dir_all(at).unwrap();
                let from = Some(elsewhere.path());
                mount(from, at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            };
            block_on(async {
                let runtime = open(&home).await;
                let id = runtime.create(sleeping()).await.unwrap().id;
                let dir = dir_of(&home, &id);
                bind(&dir.join("mounted"));
                bind(&dir.join("a/b/c/mounted"));
                fs::create_dir_all(dir.join("x/y/z")).unwrap();
                runtime.remove(&id, true).await.unwrap();
                assert!(runtime.list().await.is_empty());
                assert!(elsewhere.path().join("kept").exists());
                let remnant = dir.with_file_name(format!(".removing-{id}"));
                for name in ["box.json", "x", "a"] {
                    let path = remnant.join(name);
                    eventually("the end of the rest", || !path.exists()).await;
                }
                // It stops no opening either.
                runtime.shutdown(DEADLINE).await;
                open(&home).await.shutdown(DEADLINE).await;
                assert!(elsewhere.path().join("kept").exists());
            });
            // Not through the mounts, as the home does.
            unmount_all(home.path());
        },
    );
}

fn unmount_all(below: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for line in mounts.lines() {
        let target = Path::new(line.split(' ').nth(1).unwrap());
        if target.starts_with(below) {
            nix::mount::umount(target).unwrap();
        }
    }
}

#[test]
fn directories_without_permissions_are_removed_by_their_owner() {
    in_own_process(
        "directories_without_permissions_are_removed_by_their_owner",
        || {
            if !Uid::effective().is_root() {
                // Root is not bound by permissions; anybody else already is who this is about.
                return remove_without_permissions();
            }
            let user = Uid::from_raw(65533);
            let dir = tempfile::tempdir().unwrap();
            chown(dir.path(), Some(user.as_raw()), None).unwrap();
            env::set_current_dir(dir.path()).unwrap();
            setuid(user).unwrap();
            remove_without_permissions();
        },
    );
}

fn remove_without_permissions() {
    let home = env::current_dir().unwrap().join("home");
    // No box of this test is started.
    let options = RuntimeOptions::new(&home).shim_program("/bin/true");
    block_on(async {
        let runtime = VmmRuntime::open(options).await.unwrap();
        let id = runtime.create(sleeping()).await.unwrap().id;
        let dir = home.join("boxes").join(&id);
        for path in ["a/b/c", "a/d", "e"] {
            fs::create_dir_all(dir.join(path)).unwrap();
            File::create(dir.join(path).join("file")).unwrap();
        }
        for path in ["a/b/c", "a/b", "a/d", "a", "e", ""] {
            fs::set_permissions(dir.join(path), Permissions::from_mode(0o000)).unwrap();
        }
        runtime.remove(&id, true).await.unwrap();
        eventually("the end of its directory", || is_empty(&home.join("boxes"))).await;
        runtime.shutdown(DEADLINE).await;
    });
    fs::remove_dir_all(&home).unwrap();
}
