//! Archives of a guest that wants to write outside of the destination.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use vmm_archive::{ArchiveError, ExtractOptions, extract};

/// A file beside the destination.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("destination")).unwrap();
        fs::create_dir(dir.path().join("beside")).unwrap();
        fs::write(dir.path().join("beside/file"), "untouched").unwrap();
        Self { dir }
    }

    fn destination(&self) -> PathBuf {
        self.dir.path().join("destination")
    }

    /// Extracts the entries, and checks that nothing outside has changed.
    fn extract(&self, entries: &[Entry]) -> Result<(), ArchiveError> {
        let result = extract(
            &archive(entries)[..],
            &self.destination(),
            &ExtractOptions::default(),
        );
        self.check();
        result
    }

    fn check(&self) {
        let beside = self.dir.path().join("beside");
        assert_eq!(fs::read(beside.join("file")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(&beside).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
    }
}

struct Entry(&'static str, EntryType, &'static str);

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for Entry(path, kind, link) in entries {
        let mut header = Header::new_gnu();
        // The methods of the crate refuse such paths.
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        let data: &[u8] = if *kind == EntryType::Regular {
            b"hostile"
        } else {
            b""
        };
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn assert_escapes(result: Result<(), ArchiveError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, ArchiveError::Escapes(_)), "{error}");
}

#[test]
fn dots_do_not_lead_out() {
    let host = Host::new();
    for path in ["../beside/file", "a/../../beside/file", "/../beside/file"] {
        assert_escapes(host.extract(&[Entry(path, EntryType::Regular, "")]));
    }
    let link = Entry("copy", EntryType::Link, "../beside/file");
    assert_escapes(host.extract(&[link]));
}

#[test]
fn an_absolute_path_is_below_the_destination() {
    let host = Host::new();
    host.extract(&[Entry("/etc/name", EntryType::Regular, "")])
        .unwrap();
    assert_eq!(
        fs::read(host.destination().join("etc/name")).unwrap(),
        b"hostile"
    );
}

#[test]
fn nothing_is_written_through_a_link_that_leads_out() {
    let outside = Host::new();
    let absolute = outside.dir.path().join("beside");
    for target in ["../beside", absolute.to_str().unwrap(), "/proc/self/cwd"] {
        let host = Host::new();
        symlink(target, host.destination().join("link")).unwrap();
        for entry in [
            Entry("link/file", EntryType::Regular, ""),
            Entry("link/new", EntryType::Regular, ""),
            Entry("link/new/dir", EntryType::Directory, ""),
            Entry("link/fifo", EntryType::Fifo, ""),
            Entry("copy", EntryType::Link, "link/file"),
            Entry("link", EntryType::Directory, ""),
        ] {
            assert_escapes(host.extract(&[entry]));
        }
        outside.check();
    }
}

#[test]
fn nothing_is_written_through_a_link_of_the_archive() {
    let host = Host::new();
    let link = || Entry("link", EntryType::Symlink, "../beside");
    assert_escapes(host.extract(&[link(), Entry("link/file", EntryType::Regular, "")]));

    // A file replaces the link.
    host.extract(&[link(), Entry("link", EntryType::Regular, "")])
        .unwrap();
    let written = host.destination().join("link");
    assert!(fs::symlink_metadata(written).unwrap().is_file());
}

#[test]
fn a_renamed_directory_does_not_lead_beside_its_new_name() {
    let host = Host::new();
    let rename = ExtractOptions::default().rename_root(true);
    let entries = [
        Entry("src", EntryType::Symlink, "beside"),
        Entry("src/file", EntryType::Regular, ""),
    ];
    let target = host.dir.path().join("new");
    let error = extract(&archive(&entries)[..], &target, &rename).unwrap_err();
    assert!(matches!(error, ArchiveError::Invalid(_)), "{error}");
    fs::remove_file(&target).unwrap();
    host.check();

    let entries = [
        Entry("src", EntryType::Directory, ""),
        Entry("beside/file", EntryType::Regular, ""),
    ];
    let error = extract(&archive(&entries)[..], &target, &rename).unwrap_err();
    assert!(matches!(error, ArchiveError::Invalid(_)), "{error}");
    fs::remove_dir(&target).unwrap();
    host.check();
}

#[test]
fn a_link_below_the_destination_is_followed() {
    let host = Host::new();
    fs::create_dir_all(host.destination().join("usr/bin")).unwrap();
    symlink("usr/bin", host.destination().join("bin")).unwrap();
    host.extract(&[
        Entry("bin", EntryType::Directory, ""),
        Entry("bin/tool", EntryType::Regular, ""),
    ])
    .unwrap();
    assert!(host.destination().join("usr/bin/tool").exists());
    assert!(host.destination().join("bin").is_symlink());
}

#[test]
fn devices_and_privileged_bits_need_an_option() {
    let host = Host::new();
    for kind in [EntryType::Char, EntryType::Block] {
        let error = host.extract(&[Entry("device", kind, "")]).unwrap_err();
        assert!(matches!(error, ArchiveError::Invalid(_)), "{error}");
        assert!(!host.destination().join("device").exists());
    }
    host.extract(&[Entry("tool", EntryType::Regular, "")])
        .unwrap();
    let tool = fs::metadata(host.destination().join("tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o755);
}

#[test]
fn an_entry_that_cannot_be_created_replaces_nothing() {
    let host = Host::new();
    let name = host.destination().join("name");
    fs::write(&name, "old").unwrap();
    for (kind, link) in [
        (EntryType::Block, ""),
        (EntryType::GNUSparse, ""),
        (EntryType::Link, "../beside/file"),
    ] {
        host.extract(&[Entry("name", kind, link)]).unwrap_err();
        assert_eq!(fs::read(&name).unwrap(), b"old", "{kind:?}");
    }
}

#[test]
fn a_hard_link_shares_a_file_of_the_archive_only() {
    let host = Host::new();
    symlink("../beside/file", host.destination().join("symlink")).unwrap();
    host.extract(&[
        Entry("file", EntryType::Regular, ""),
        Entry("copy", EntryType::Link, "file"),
        // A link to the symbolic link, not to its target.
        Entry("other", EntryType::Link, "symlink"),
    ])
    .unwrap();
    let outside = fs::metadata(host.dir.path().join("beside/file")).unwrap();
    assert_eq!(outside.nlink(), 1);
    let file = fs::metadata(host.destination().join("file")).unwrap();
    let copy = fs::metadata(host.destination().join("copy")).unwrap();
    assert_eq!((file.ino(), file.nlink()), (copy.ino(), 2));
}

#[test]
fn the_file_behind_a_hard_link_is_not_written() {
    let host = Host::new();
    let outside = host.dir.path().join("beside/file");
    fs::hard_link(&outside, host.destination().join("name")).unwrap();
    host.extract(&[Entry("name", EntryType::Regular, "")])
        .unwrap();
    assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1);
}

#[test]
fn a_map_of_holes_is_not_taken_for_content() {
    let mut builder = Builder::new(Vec::new());
    let fields: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")];
    builder.append_pax_extensions(fields).unwrap();
    let mut archive = builder.into_inner().unwrap();
    archive.truncate(1024);
    archive.extend(self::archive(&[Entry("file", EntryType::Regular, "")]));
    let host = Host::new();
    let options = ExtractOptions::default();
    let error = extract(&archive[..], &host.destination(), &options).unwrap_err();
    assert!(error.to_string().contains("--sparse"), "{error}");
}

#[test]
fn a_description_without_end_does_not_fill_the_memory() {
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let mut header = Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'a'));
        let mut stream = endless.take(1 << 20);
        let target = Path::new("/nonexistent");
        let error = extract(&mut stream, target, &ExtractOptions::default()).unwrap_err();
        assert!(matches!(error, ArchiveError::Invalid(_)), "{error}");
        assert!(
            stream.limit() > 1 << 19,
            "it is read no further than needed"
        );
    }
}
