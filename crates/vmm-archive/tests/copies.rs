//! What `create` writes, `extract` restores.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use tempfile::TempDir;
use vmm_archive::{ArchiveError, CreateOptions, ExtractOptions, create, extract};

fn archive_of(source: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    create(source, &mut archive, &CreateOptions::default()).unwrap();
    archive
}

/// Creates the directory `tree` with two files, a link and a directory that cannot be written.
fn tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("locked")).unwrap();
    fs::write(tree.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("script"), Permissions::from_mode(0o751)).unwrap();
    fs::write(tree.join("locked/data"), vec![7; 100_000]).unwrap();
    fs::set_permissions(tree.join("locked"), Permissions::from_mode(0o550)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let locked = File::open(tree.join("locked")).unwrap();
    locked.set_modified(time).unwrap();
    symlink("/nowhere/../else", tree.join("link")).unwrap();
    let long = tree.join(["name"; 40].join("-"));
    fs::write(long, "the name needs an extension of the header").unwrap();
    dir
}

fn check(copy: &Path, source: &Path) {
    let modified = |path: &Path| fs::metadata(path).unwrap().mtime();
    let mode = |name| fs::metadata(copy.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("script"), mode("locked")), (0o751, 0o550));
    assert_eq!(fs::read(copy.join("script")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::read(copy.join("locked/data")).unwrap(), [7; 100_000]);
    assert_eq!(
        fs::read_link(copy.join("link")).unwrap(),
        Path::new("/nowhere/../else")
    );
    assert_eq!(
        modified(&copy.join("locked")),
        modified(&source.join("locked"))
    );
    assert!(copy.join(["name"; 40].join("-")).exists());
}

#[test]
fn a_copy_has_the_modes_times_and_links_of_the_source() {
    let dir = tree();
    let source = dir.path().join("tree");
    let archive = archive_of(&source);

    // Below a directory that exists.
    let below = dir.path().join("below");
    fs::create_dir(&below).unwrap();
    extract(&archive[..], &below, &ExtractOptions::default()).unwrap();
    check(&below.join("tree"), &source);

    // Under another name.
    let renamed = dir.path().join("renamed");
    let rename = ExtractOptions::default().rename_root(true);
    extract(&archive[..], &renamed, &rename).unwrap();
    check(&renamed, &source);

    // The contents, into a directory that is created.
    let contents = dir.path().join("new/contents");
    let archive = archive_of(&source.join("."));
    extract(&archive[..], &contents, &ExtractOptions::default()).unwrap();
    check(&contents, &source);
}

#[test]
fn a_file_is_copied_into_a_directory_or_to_a_new_name() {
    let dir = tree();
    let archive = archive_of(&dir.path().join("tree/script"));
    let rename = ExtractOptions::default().rename_root(true);
    let target = |name: &str| dir.path().join(name);

    extract(&archive[..], &target("renamed"), &rename).unwrap();
    assert_eq!(fs::read(target("renamed")).unwrap(), b"#!/bin/sh\n");
    extract(&archive[..], dir.path(), &rename).unwrap();
    assert_eq!(fs::read(target("script")).unwrap(), b"#!/bin/sh\n");

    let error = extract(&archive[..], &target("missing/"), &rename).unwrap_err();
    assert!(matches!(error, ArchiveError::NotADirectory(_)), "{error}");
    let error = extract(&archive[..], &target("missing/name"), &rename).unwrap_err();
    assert!(matches!(error, ArchiveError::NotFound(_)), "{error}");
    let directory = archive_of(&dir.path().join("tree"));
    let error = extract(&directory[..], &target("script"), &rename).unwrap_err();
    assert!(matches!(error, ArchiveError::NotADirectory(_)), "{error}");
}

#[test]
fn files_that_exist_are_replaced_only_if_the_options_allow_it() {
    let dir = tree();
    let archive = archive_of(&dir.path().join("tree/."));
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, Permissions::from_mode(0o700)).unwrap();
    fs::write(target.join("script"), "old").unwrap();

    let keep = ExtractOptions::default().overwrite(false);
    let error = extract(&archive[..], &target, &keep).unwrap_err();
    assert!(matches!(error, ArchiveError::Exists(_)), "{error}");
    assert_eq!(fs::read(target.join("script")).unwrap(), b"old");

    let _ = fs::remove_dir_all(target.join("locked"));
    extract(&archive[..], &target, &ExtractOptions::default()).unwrap();
    check(&target, &dir.path().join("tree"));
    let mode = fs::metadata(&target).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700, "a directory that exists keeps its mode");
}

#[test]
fn links_are_followed_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(dir.path().join("target"), "content").unwrap();
    symlink("../target", source.join("link")).unwrap();
    let mut archive = Vec::new();
    let follow = CreateOptions::default().follow_symlinks(true);
    create(&source, &mut archive, &follow).unwrap();
    let copy = dir.path().join("copy");
    let rename = ExtractOptions::default().rename_root(true);
    extract(&archive[..], &copy, &rename).unwrap();
    assert!(fs::symlink_metadata(copy.join("link")).unwrap().is_file());
    assert_eq!(fs::read(copy.join("link")).unwrap(), b"content");
}

#[test]
fn the_source_must_exist() {
    let mut archive = Vec::new();
    let missing = Path::new("/nonexistent/file");
    let error = create(missing, &mut archive, &CreateOptions::default()).unwrap_err();
    assert!(matches!(error, ArchiveError::NotFound(_)), "{error}");
    let error = create(
        Path::new("/etc/passwd/"),
        &mut archive,
        &CreateOptions::default(),
    );
    assert!(matches!(error, Err(ArchiveError::NotADirectory(_))));
    assert!(archive.is_empty());
}

#[test]
fn an_archive_that_could_not_be_completed_has_no_end() {
    let dir = tree();
    symlink("loop", dir.path().join("tree/loop")).unwrap();
    let mut archive = Vec::new();
    let follow = CreateOptions::default().follow_symlinks(true);
    fs::remove_file(dir.path().join("tree/link")).unwrap();
    let error = create(&dir.path().join("tree"), &mut archive, &follow).unwrap_err();
    assert!(matches!(error, ArchiveError::File { .. }), "{error}");
    assert!(!archive.ends_with(&[0; 1024]));
}

#[test]
fn an_archive_that_ends_early_is_an_error() {
    let dir = tree();
    let archive = archive_of(&dir.path().join("tree/locked/data"));
    for length in [100, 700, 50_000] {
        let target = dir.path().join("short");
        let error = extract(&archive[..length], &target, &ExtractOptions::default()).unwrap_err();
        assert!(
            matches!(error, ArchiveError::Invalid(_)),
            "{length}: {error}"
        );
        assert!(
            !target.join("data").exists(),
            "a part of a file has no name"
        );
    }
}

#[test]
fn a_file_that_cannot_be_extracted_does_not_replace_another() {
    let dir = tree();
    let archive = archive_of(&dir.path().join("tree/locked/data"));
    fs::write(dir.path().join("data"), "old").unwrap();
    extract(&archive[..50_000], dir.path(), &ExtractOptions::default()).unwrap_err();
    assert_eq!(fs::read(dir.path().join("data")).unwrap(), b"old");
    let names = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 2, "the file and the tree");
}

#[test]
fn a_sparse_file_has_its_holes_in_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("sparse");
    let file = File::create(&source).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"data", 32 << 20).unwrap();
    let archive = archive_of(&source);
    assert!(archive.len() > 64 << 20, "holes are sent as zeros");

    let copy = dir.path().join("copy");
    extract(&archive[..], &copy, &ExtractOptions::default()).unwrap();
    let copy = File::open(copy.join("sparse")).unwrap();
    let metadata = copy.metadata().unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
    let mut data = [0; 8];
    copy.read_exact_at(&mut data, 32 << 20).unwrap();
    assert_eq!(&data, b"data\0\0\0\0");
}

#[test]
fn hard_links_become_separate_files() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), "content").unwrap();
    fs::hard_link(source.join("a"), source.join("b")).unwrap();
    let copy = dir.path().join("copy");
    extract(
        &archive_of(&source.join("."))[..],
        &copy,
        &ExtractOptions::default(),
    )
    .unwrap();
    for name in ["a", "b"] {
        assert_eq!(fs::read(copy.join(name)).unwrap(), b"content");
        assert_eq!(fs::metadata(copy.join(name)).unwrap().nlink(), 1);
    }
}

#[test]
fn the_stream_is_read_to_its_end() {
    let dir = tree();
    let archive = archive_of(&dir.path().join("tree/script"));
    let mut stream = (&archive[..]).chain(io::repeat(0).take(1 << 20));
    let target = dir.path().join("target");
    extract(&mut stream, &target, &ExtractOptions::default()).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn owners_privileged_bits_and_devices_are_kept_on_request() {
    if !rustix::process::geteuid().is_root() {
        let is_ci = std::env::var_os("CI").is_some();
        assert!(!is_ci, "this test needs root");
        eprintln!("SKIPPED: this test needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("tool"), "tool").unwrap();
    chown(source.join("tool"), Some(33), Some(34)).unwrap();
    fs::set_permissions(source.join("tool"), Permissions::from_mode(0o6751)).unwrap();
    let device = makedev(1, 3);
    let mode = Mode::from_raw_mode(0o622);
    let made = mknodat(
        CWD,
        source.join("null"),
        FileType::CharacterDevice,
        mode,
        device,
    );
    if made == Err(Errno::PERM) {
        // In a user namespace.
        eprintln!("SKIPPED: this test needs the right to create devices");
        return;
    }
    made.unwrap();

    let copy = dir.path().join("copy");
    let preserve = ExtractOptions::default().preserve(true);
    extract(&archive_of(&source.join("."))[..], &copy, &preserve).unwrap();
    let tool = fs::metadata(copy.join("tool")).unwrap();
    assert_eq!(
        (tool.uid(), tool.gid(), tool.mode() & 0o7777),
        (33, 34, 0o6751)
    );
    assert_eq!(fs::metadata(copy.join("null")).unwrap().rdev(), device);

    let owner = CreateOptions::default().owner(7, 8);
    let mut archive = Vec::new();
    create(&source.join("tool"), &mut archive, &owner).unwrap();
    extract(&archive[..], &copy, &preserve).unwrap();
    let tool = fs::metadata(copy.join("tool")).unwrap();
    assert_eq!((tool.uid(), tool.gid()), (7, 8));
}
