use std::cmp::Ordering;
use std::fs;
use std::path::Path;

use crate::BuildError;

/// A kernel of the host.
pub(crate) struct Kernel {
    /// The contents of the file.
    pub(crate) image: Vec<u8>,
    /// The version, as `uname -r` prints it, which is also the name of the directory of its modules.
    pub(crate) version: String,
}

impl Kernel {
    /// Reads the version of a kernel.
    pub(crate) fn open(path: &Path) -> Result<Self, BuildError> {
        let image = fs::read(path).map_err(BuildError::read(path))?;
        let version = parse_version(&image).ok_or_else(|| BuildError::NotAKernel {
            path: path.to_owned(),
        })?;
        Ok(Self { image, version })
    }

    /// Returns the newest kernel `vmlinuz-VERSION` in `boot` that has modules in `modules`.
    pub(crate) fn find_newest(boot: &Path, modules: &Path) -> Result<Self, BuildError> {
        let entries = fs::read_dir(boot).map_err(BuildError::read(boot))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let newest = names
            .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
            .filter(|version| modules.join(version).is_dir())
            .max_by(|a, b| compare_versions(a, b))
            .ok_or_else(|| BuildError::NoKernel {
                dir: boot.to_owned(),
            })?;
        Self::open(&boot.join(format!("vmlinuz-{newest}")))
    }
}

/// Returns the version in the header of an image, x86/boot of the kernel's documentation.
fn parse_version(image: &[u8]) -> Option<String> {
    const SIGNATURE: usize = 0x202;
    const VERSION_OFFSET: usize = 0x20e;
    const SETUP: usize = 0x200;
    if image.get(SIGNATURE..)?.get(..4)? != b"HdrS" {
        return None;
    }
    let offset = image.get(VERSION_OFFSET..)?.first_chunk()?;
    let text = image.get(SETUP + usize::from(u16::from_le_bytes(*offset))..)?;
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    let version = std::str::from_utf8(&text[..end]).ok()?;
    // It becomes the name of a directory.
    (!version.is_empty() && !version.contains('/')).then(|| version.to_owned())
}

/// Compares versions: numbers by value, the rest as text.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts = |version: &str| -> Vec<(u64, String)> {
        let split = version.split_inclusive(|c: char| !c.is_ascii_digit());
        split
            .map(|part| {
                let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
                let rest = part[digits.len()..].to_owned();
                (digits.parse().unwrap_or(0), rest)
            })
            .collect()
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x300 + version.len()].copy_from_slice(version);
        image
    }

    #[test]
    fn the_newest_kernel_with_modules_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (boot, modules) = (dir.path().join("boot"), dir.path().join("modules"));
        fs::create_dir(&boot).unwrap();
        let error = Kernel::find_newest(&boot, &modules).err().unwrap();
        assert!(
            error.to_string().contains("linux-image-cloud-amd64"),
            "{error}"
        );
        for version in ["6.1.0-9-cloud-amd64", "6.1.0-41-cloud-amd64", "6.12.0-none"] {
            let file = boot.join(format!("vmlinuz-{version}"));
            fs::write(file, image(format!("{version} (root@host)").as_bytes())).unwrap();
            if !version.ends_with("none") {
                fs::create_dir_all(modules.join(version)).unwrap();
            }
        }
        let kernel = Kernel::find_newest(&boot, &modules).unwrap();
        assert_eq!(kernel.version, "6.1.0-41-cloud-amd64");
    }

    #[test]
    fn a_file_that_is_not_a_kernel_has_no_version() {
        for bytes in [
            &b""[..],
            b"HdrS",
            &image(b"../x "),
            &image(b" "),
            &[1; 0x400],
        ] {
            assert_eq!(parse_version(bytes), None);
        }
        assert_eq!(parse_version(&image(b"6.1.0 #1")).as_deref(), Some("6.1.0"));
    }
}
