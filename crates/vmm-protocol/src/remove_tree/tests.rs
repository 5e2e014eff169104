use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;

use rustix::fs::mkdirat;
use tempfile::TempDir;

use super::*;

fn never() -> bool {
    false
}

fn tree() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree");
    fs::create_dir(&path).unwrap();
    (dir, path)
}

fn assert_removed(dir: &TempDir, path: &Path) {
    assert_eq!(remove_tree(path, never).unwrap(), RemovalProgress::Removed);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Creates `levels` nested directories, each beside a file.
fn dig(path: &Path, levels: usize) {
    let mut dir = open_dir(CWD, path).unwrap();
    for _ in 0..levels {
        mkdirat(&dir, c"d", Mode::RWXU).unwrap();
        let flags = OFlags::CREATE | OFlags::WRONLY;
        openat(&dir, c"file", flags, Mode::RUSR).unwrap();
        dir = open_dir(dir.as_fd(), c"d").unwrap();
    }
}

#[test]
fn a_deep_tree_is_removed_on_a_small_stack() {
    let (dir, path) = tree();
    dig(&path, 20_000);
    let small = thread::Builder::new().stack_size(64 << 10);
    let removal = small.spawn(move || assert_removed(&dir, &path)).unwrap();
    removal.join().unwrap();
}

#[test]
fn a_wide_tree_is_removed() {
    let (dir, path) = tree();
    for number in 0..2_000 {
        fs::create_dir_all(path.join(format!("{number}/inner/empty"))).unwrap();
        fs::write(path.join(format!("{number}/inner/file")), "").unwrap();
    }
    assert_removed(&dir, &path);
}

#[test]
fn entries_with_numbers_as_names_are_removed() {
    let (dir, path) = tree();
    fs::write(path.join("0"), "").unwrap();
    for name in ["1/1/1/1/1", "1/2/0/0", "2/0/1/2", "3/3", "3/0"] {
        fs::create_dir_all(path.join(name)).unwrap();
        fs::write(path.join(name).join("4"), "").unwrap();
    }
    assert_removed(&dir, &path);
}

#[test]
fn entries_with_arbitrary_bytes_in_their_names_are_removed() {
    let (dir, path) = tree();
    for name in [&b"\xff\xfe"[..], b"a\nb", b"\x1b[0m", b" ", b"-rf", b"..."] {
        let inner = path.join(OsStr::from_bytes(name));
        fs::create_dir_all(inner.join("inner")).unwrap();
        fs::write(inner.join("inner").join(OsStr::from_bytes(name)), "").unwrap();
    }
    assert_removed(&dir, &path);
}

#[test]
fn symbolic_links_are_removed_and_not_followed() {
    let (dir, path) = tree();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir_all(elsewhere.path().join("kept/inner")).unwrap();
    fs::create_dir_all(path.join("a/b")).unwrap();
    for link in ["link", "a/link", "a/b/link"] {
        symlink(elsewhere.path(), path.join(link)).unwrap();
    }
    assert_removed(&dir, &path);
    symlink(elsewhere.path(), &path).unwrap();
    assert_removed(&dir, &path);
    assert!(elsewhere.path().join("kept/inner").exists());
}

#[test]
fn a_file_and_a_missing_path_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    assert_removed(&dir, &path);
    assert_removed(&dir, &path);
}

#[test]
fn the_next_call_continues_a_stopped_removal() {
    let (dir, path) = tree();
    dig(&path, 100);
    let mut calls = 0;
    loop {
        calls += 1;
        let entries = std::cell::Cell::new(0);
        let stop = || entries.replace(entries.get() + 1) >= 30;
        match remove_tree(&path, stop).unwrap() {
            RemovalProgress::Stopped => {}
            RemovalProgress::Removed => break,
        }
    }
    assert!(calls > 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Directories that earlier calls have moved up neither delay later calls nor are moved again.
#[test]
fn a_removal_in_slices_moves_each_directory_up_once() {
    const WIDTH: usize = 10;
    const SUBDIRS: usize = 50;
    const CHECKS: usize = 20;
    let (dir, path) = tree();
    for number in 0..WIDTH * SUBDIRS {
        fs::create_dir_all(path.join(format!("{}/{number}/inner", number % WIDTH))).unwrap();
    }
    let renames_before = RENAMES.get();
    let mut calls = 0;
    loop {
        calls += 1;
        let checks = std::cell::Cell::new(0);
        let stop = || checks.replace(checks.get() + 1) >= CHECKS;
        if remove_tree(&path, stop).unwrap() == RemovalProgress::Removed {
            break;
        }
    }
    assert_eq!(RENAMES.get() - renames_before, WIDTH * SUBDIRS);
    // Each directory takes a few checks: to move it up, to list it, and to remove its contents.
    let bound = 10 * WIDTH * SUBDIRS / CHECKS;
    assert!((SUBDIRS..bound).contains(&calls), "{calls} calls");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn entries_added_during_the_removal_do_not_make_it_endless() {
    let (dir, path) = tree();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stop = &stop;
    thread::scope(|scope| {
        let root = open_dir(CWD, &path).unwrap();
        scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Fails once the root has been removed.
                let _ = mkdirat(&root, c"x", Mode::RWXU);
                let _ = mkdirat(&root, c"x/y", Mode::RWXU);
                let _ = mkdirat(&root, c"x/y/z", Mode::RWXU);
            }
        });
        // Both outcomes are correct; a hang is not.
        let _ = remove_tree(&path, never);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_removed(&dir, &path);
}
