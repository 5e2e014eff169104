use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{BuildError, tool};

const BLOCK: u64 = 4096;

/// Unpacks a tar archive, compressed or not. Owners are kept if this process is root.
///
/// `/dev` stays empty: only root can create devices, and the agent mounts the devices of the guest.
pub(crate) fn unpack(archive: &Path, dir: &Path) -> Result<(), BuildError> {
    fs::create_dir(dir).map_err(BuildError::write(dir))?;
    let mut command = tool::command("tar");
    command
        .args(["--extract", "--preserve-permissions", "--numeric-owner"])
        .args(["--xattrs", "--xattrs-include=*"])
        .args(["--anchored", "--exclude=./dev/*", "--exclude=dev/*"])
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(dir);
    tool::run("tar", "tar", &mut command).map(drop)
}

/// Creates a file system with the contents of a directory. Owners, modes and extended attributes are
/// kept.
pub(crate) fn create(dir: &Path, image: &Path) -> Result<(), BuildError> {
    check(dir)?;
    let mut size = TreeSize::default();
    size.add(dir)?;
    let mut command = tool::command("mke2fs");
    command
        .args(["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-d"])
        .arg(dir)
        .arg("-N")
        .arg(size.inodes_of_image().to_string())
        .arg(image)
        .arg(format!("{}k", size.bytes_of_image() / 1024));
    tool::run("mke2fs", "e2fsprogs", &mut command).map(drop)
}

/// Recognizes what users could take for a root file system.
fn check(dir: &Path) -> Result<(), BuildError> {
    let has = |name: &str| dir.join(name).exists();
    let reason = if has("oci-layout") {
        "it is an OCI layout; unpack it with `umoci unpack --image DIR:TAG BUNDLE`, and use \
         BUNDLE/rootfs"
    } else if has("config.json") && has("rootfs") {
        "it is an OCI bundle; use its directory rootfs"
    } else {
        return Ok(());
    };
    Err(BuildError::NotARoot {
        path: dir.to_owned(),
        reason,
    })
}

/// What the files of a directory tree need in a file system.
#[derive(Debug, Default)]
struct TreeSize {
    inodes: u64,
    blocks: u64,
}

impl TreeSize {
    fn add(&mut self, dir: &Path) -> Result<(), BuildError> {
        for entry in fs::read_dir(dir).map_err(BuildError::read(dir))? {
            let entry = entry.map_err(BuildError::read(dir))?;
            let path = entry.path();
            // Of the entry itself: symbolic links are not followed.
            let metadata = entry.metadata().map_err(BuildError::read(&path))?;
            self.inodes += 1;
            // One more, for a directory, a long symbolic link, or the extents of a large file.
            self.blocks += 1;
            if metadata.is_dir() {
                self.blocks += metadata.size().div_ceil(BLOCK);
                self.add(&path)?;
            } else if metadata.is_file() {
                self.blocks += metadata.size().div_ceil(BLOCK);
            }
        }
        Ok(())
    }

    fn inodes_of_image(&self) -> u64 {
        // A file system has some of its own.
        self.inodes + self.inodes / 10 + 256
    }

    /// A multiple of a block. Contains space for the journal; the file is sparse, so space that is free
    /// takes no space on the disk.
    fn bytes_of_image(&self) -> u64 {
        const FREE_BLOCKS: u64 = (64 << 20) / BLOCK;
        // An inode has 256 bytes.
        let blocks = self.blocks + self.inodes_of_image() / 16;
        (blocks + blocks / 10 + FREE_BLOCKS) * BLOCK
    }
}
