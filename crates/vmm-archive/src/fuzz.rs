//! What the fuzz target in `tests/fuzz` checks. The function panics if an archive breaks a promise of
//! `extract`.

#![allow(clippy::unwrap_used, reason = "a failed check ends the program")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::{ArchiveError, CreateOptions, ExtractOptions, create, extract};

/// The longest error: a path of the archive, and a text around it.
const MAX_ERROR_BYTES: usize = (64 << 10) + 256;

/// Extracts an archive that a guest could send, and checks that it changes nothing outside of its
/// destination. `dir` is a directory for its files.
pub fn archives(dir: &Path, input: &[u8]) {
    let archive = with_checksums(input);
    for rename_root in [false, true] {
        let root = dir.join("root");
        clear(&root);
        let beside = root.join("beside");
        fs::create_dir_all(&beside).unwrap();
        fs::write(beside.join("file"), "untouched").unwrap();
        let destination = root.join("destination");
        let options = ExtractOptions::default().rename_root(rename_root);
        let extracted = extract(&archive[..], &destination, &options);

        assert_eq!(fs::read(beside.join("file")).unwrap(), b"untouched");
        assert_eq!(fs::metadata(beside.join("file")).unwrap().nlink(), 1);
        assert_eq!(fs::read_dir(&beside).unwrap().count(), 1);
        assert!(fs::read_dir(&root).unwrap().count() <= 2);
        let files = list(&destination);
        for file in files.values() {
            assert!(file.size <= input.len() as u64, "{file:?}");
        }
        match extracted {
            Ok(()) => check_copy(&root, &destination, &files),
            Err(error) => check_error(&error),
        }
    }
}

/// Returns the input with valid checksums in all that looks like a header: the fuzzer does not find
/// them.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut archive = input.to_vec();
    for block in archive.chunks_exact_mut(512) {
        if block[257..].starts_with(b"ustar") {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    archive
}

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    mode: u32,
    size: u64,
    target: Option<PathBuf>,
}

/// Returns what is below a path, and checks that nothing of it has more rights than its creator.
fn list(root: &Path) -> BTreeMap<PathBuf, Listed> {
    let mut listed = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        // The destination does not exist if the archive has no entry.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = metadata.file_type();
        assert!(!kind.is_block_device() && !kind.is_char_device());
        assert!(kind.is_symlink() || metadata.mode() & 0o7000 == 0);
        if kind.is_dir() {
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            paths.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
        }
        let file = Listed {
            mode: if kind.is_dir() { 0 } else { metadata.mode() },
            size: if kind.is_file() { metadata.len() } else { 0 },
            target: fs::read_link(&path).ok(),
        };
        listed.insert(path.strip_prefix(root).unwrap().to_owned(), file);
    }
    listed
}

/// Checks that an archive of the extracted files has the same files.
fn check_copy(root: &Path, destination: &Path, files: &BTreeMap<PathBuf, Listed>) {
    let mut archive = Vec::new();
    match create(destination, &mut archive, &CreateOptions::default()) {
        // Without privileges, the mode of a file can forbid to read it.
        Err(ArchiveError::NotFound(_) | ArchiveError::File { .. }) => return,
        created => created.unwrap(),
    }
    let copy = root.join("copy");
    let options = ExtractOptions::default().rename_root(true);
    extract(&archive[..], &copy, &options).unwrap();
    assert_eq!(&list(&copy), files);
}

fn check_error(error: &ArchiveError) {
    assert!(error.to_string().len() <= MAX_ERROR_BYTES);
}

/// Removes a tree, whatever its modes are.
fn clear(root: &Path) {
    list(root);
    let _ = fs::remove_dir_all(root);
    assert!(!root.exists());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archives_of_the_corpus_stay_in_their_destination() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
        if !corpus.is_dir() {
            // The published package does not contain the corpora.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(corpus.join("archives")).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            archives(dir.path(), &fs::read(path).unwrap());
        }
    }
}
