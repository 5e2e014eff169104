/// An archive in the format `newc` of cpio(5), which the kernel unpacks as the initial RAM file system.
///
/// The crates for cpio archives read and write files with owners and times, from and to streams. An
/// initrd needs two kinds of entries in memory.
///
/// ```
/// let mut archive = vmm_image::CpioArchive::new();
/// archive.add_dir("modules");
/// archive.add_file("init", 0o755, b"#!/bin/sh\n");
/// let bytes = archive.finish();
/// assert!(bytes.starts_with(b"070701"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct CpioArchive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

impl CpioArchive {
    /// Creates an empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with the mode 0755. Add a directory before its entries.
    pub fn add_dir(&mut self, path: &str) {
        self.add(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file with these permissions. It must be shorter than 4 GiB.
    pub fn add_file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.add(path, REGULAR | permissions, contents);
    }

    /// Returns the bytes of the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn add(&mut self, path: &str, mode: u32, contents: &[u8]) {
        // Equal inode numbers would be hard links.
        self.entries += 1;
        let links = 1;
        let name_size = length(path.as_bytes()) + 1;
        // inode, mode, uid, gid, links, time, size, device, device of a node, size of the name, checksum
        let header = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            length(contents),
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in header {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_an_entry_is_aligned() {
        let mut archive = CpioArchive::new();
        archive.add_file("init", 0o755, b"123");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[110..120], b"init\0\x00123\0");
    }
}
