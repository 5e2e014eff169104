//! Removals of box directories that a payload has made hard to remove.

mod common;

use std::env;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use common::boxes::{box_dir, open_runtime, sleeping};
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, setuid};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{Removal, RuntimeOptions, ShimProgram, VmmRuntime};

/// More levels than a recursive removal has stack for, or a process has descriptors for.
const DEPTH: usize = 14_000;

/// Enough for a VMM runtime, and far fewer than levels.
const MAX_DESCRIPTORS: u64 = 64;

/// Makes a tree whose full path is too long for any system call.
fn make_deep_tree(dir: &Path) {
    let working_dir = env::current_dir().unwrap();
    env::set_current_dir(dir).unwrap();
    for _ in 0..DEPTH {
        fs::create_dir("d").unwrap();
        env::set_current_dir("d").unwrap();
    }
    env::set_current_dir(working_dir).unwrap();
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
            setrlimit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS).unwrap();
            block_on(async {
                let runtime = open_runtime(&home).await;
                let id = runtime.create(sleeping()).await.unwrap().id;
                make_deep_tree(&box_dir(&home, &id));
                runtime.remove(&id, Removal::Force).await.unwrap();
                let boxes = home.path().join("boxes");
                eventually("the directory is gone", || is_empty(&boxes)).await;
                runtime.shutdown(DEADLINE).await;
            });
        },
    );
}

#[test]
fn a_deep_remnant_does_not_prevent_opening_a_home() {
    in_own_process("a_deep_remnant_does_not_prevent_opening_a_home", || {
        let home = PerTestBoxHome::new();
        block_on(async {
            open_runtime(&home).await.shutdown(DEADLINE).await;
            let boxes = home.path().join("boxes");
            for name in [".removing-a", ".creating-b"] {
                fs::create_dir(boxes.join(name)).unwrap();
                make_deep_tree(&boxes.join(name));
            }
            let runtime = open_runtime(&home).await;
            runtime.create(sleeping()).await.unwrap();
            eventually("the remnants are gone", || {
                fs::read_dir(&boxes).unwrap().count() == 1
            })
            .await;
            runtime.shutdown(DEADLINE).await;
        });
    });
}

#[test]
fn a_removal_skips_mounts() {
    in_own_process("a_removal_skips_mounts", || {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        let result = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, private, None::<&str>));
        if let Err(error) = result {
            common::skip(format_args!("this test needs permission to mount: {error}"));
            return;
        }
        // On the same file system, so that the device number is the same.
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("kept")).unwrap();
        let home = PerTestBoxHome::new();
        let bind = |at: &Path| {
            fs::create_dir_all(at).unwrap();
            let from = Some(outside.path());
            mount(from, at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        };
        block_on(async {
            let runtime = open_runtime(&home).await;
            let id = runtime.create(sleeping()).await.unwrap().id;
            let dir = box_dir(&home, &id);
            bind(&dir.join("mounted"));
            bind(&dir.join("a/b/c/mounted"));
            fs::create_dir_all(dir.join("x/y/z")).unwrap();
            runtime.remove(&id, Removal::Force).await.unwrap();
            assert!(runtime.list().await.is_empty());
            assert!(outside.path().join("kept").exists());
            let remnant = dir.with_file_name(format!(".removing-{id}"));
            for name in ["box.json", "x", "a"] {
                let path = remnant.join(name);
                eventually("the rest is gone", || !path.exists()).await;
            }
            // The mounts do not prevent opening the home.
            runtime.shutdown(DEADLINE).await;
            let runtime = open_runtime(&home).await;
            assert!(outside.path().join("kept").exists());
            // The removal is retried until it succeeds.
            unmount_all(home.path());
            eventually("the directory is gone", || !remnant.exists()).await;
            assert!(outside.path().join("kept").exists());
            runtime.shutdown(DEADLINE).await;
        });
    });
}

fn unmount_all(below: &Path) {
    // Of this thread: only the threads that it has started since are in its mount namespace.
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    for line in mounts.lines() {
        let target = Path::new(line.split(' ').nth(1).unwrap());
        if target.starts_with(below) {
            nix::mount::umount(target).unwrap();
        }
    }
}

#[test]
fn directories_without_permissions_are_removed() {
    in_own_process("directories_without_permissions_are_removed", || {
        if !Uid::effective().is_root() {
            // Permissions do not bind root, so only root has to change its user first.
            return remove_without_permissions();
        }
        let user = Uid::from_raw(65533);
        let dir = tempfile::tempdir().unwrap();
        chown(dir.path(), Some(user.as_raw()), None).unwrap();
        env::set_current_dir(dir.path()).unwrap();
        setuid(user).unwrap();
        remove_without_permissions();
    });
}

fn remove_without_permissions() {
    let home = env::current_dir().unwrap().join("home");
    // This test starts no box.
    let options = RuntimeOptions::new(&home).shim_program(ShimProgram::at("/bin/true").unwrap());
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
        runtime.remove(&id, Removal::Force).await.unwrap();
        eventually("the directory is gone", || is_empty(&home.join("boxes"))).await;
        runtime.shutdown(DEADLINE).await;
    });
    fs::remove_dir_all(&home).unwrap();
}
