//! Whether the names of boxes are on disk when an operation has succeeded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the system calls of a runtime have made of the names in its home.
#[derive(Clone, Debug, Default)]
pub struct Durability {
    /// The directories with a new name, since their last sync.
    unsynced: BTreeSet<PathBuf>,
    /// A box directory that was deleted under its name, so that a kill leaves a part of it.
    deleted_in_place: Option<PathBuf>,
}

impl Durability {
    /// Adds a system call that is about to take effect on a file or directory.
    pub fn add(&mut self, call: &str, path: &Path) {
        let Some(parent) = path.parent() else { return };
        let is_in_boxes = parent.ends_with("boxes");
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        match call {
            "mkdir" | "mkdirat" | "rename" | "renameat" | "renameat2"
                if is_in_boxes || name == b"boxes" =>
            {
                self.unsynced.insert(parent.to_owned());
            }
            "rmdir" | "unlinkat" if is_in_boxes && !name.starts_with(b".") => {
                self.deleted_in_place = Some(path.to_owned());
            }
            "fsync" => {
                self.unsynced.remove(path);
            }
            _ => {}
        }
    }

    /// Returns an error if a power cut could undo an operation that has succeeded.
    pub fn check(&self) -> Result<(), String> {
        match &self.deleted_in_place {
            Some(path) => Err(format!("{} was deleted in place", path.display())),
            None if self.unsynced.is_empty() => Ok(()),
            None => Err(format!("not synced: {:?}", self.unsynced)),
        }
    }
}
