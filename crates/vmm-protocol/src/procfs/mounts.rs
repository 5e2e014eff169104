use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The largest `mountinfo` that is read: more than 30,000 mounts of overlays, whose lines are the longest.
const MAX_BYTES: u64 = 64 << 20;

const PAGE_BYTES: usize = 4096;

/// A mount in the mount namespace of the calling process, `proc_pid_mountinfo(5)`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mount {
    /// The directory or file of the file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type of the file system, such as `cgroup2`.
    pub kind: OsString,
    /// The options of the file system, separated by commas.
    pub options: OsString,
}

/// Returns the mounts that the calling process can reach, in the order of the kernel.
///
/// ```
/// use std::path::Path;
///
/// let mounts = vmm_protocol::procfs::mounts()?;
/// assert!(mounts.iter().any(|mount| mount.point == Path::new("/proc")));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// If `/proc` cannot be read, or if there are too many mounts to read all: of the kind
/// [`InvalidData`](io::ErrorKind::InvalidData).
pub fn mounts() -> io::Result<Vec<Mount>> {
    // The kernel returns a page at a time. Without it, the first reads are of 32 bytes.
    let mut text = Vec::with_capacity(PAGE_BYTES);
    let file = File::open("/proc/self/mountinfo")?;
    let size = file.take(MAX_BYTES).read_to_end(&mut text)?;
    if size as u64 == MAX_BYTES {
        let message = format!("there are more mounts than fit into {MAX_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Mount::parse_all(&text))
}

impl Mount {
    /// Parses the lines of a `mountinfo`, and omits those that are not complete.
    pub(crate) fn parse_all(text: &[u8]) -> Vec<Self> {
        let lines = text.split(|byte| *byte == b'\n');
        lines.filter_map(Self::parse).collect()
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // The number of fields before it varies.
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        Some(Self {
            root: unescape(root).into(),
            point: unescape(point).into(),
            kind: unescape(kind),
            options: unescape(options),
        })
    }
}

/// Returns the text without the escapes of the kernel: `\040` is a space.
fn unescape(text: &[u8]) -> OsString {
    let digits = |escape: &[u8]| -> Option<u8> {
        let octal = escape.strip_prefix(b"\\")?;
        let is_octal = octal.iter().all(|digit| (b'0'..=b'7').contains(digit));
        let octal = str::from_utf8(octal).ok().filter(|_| is_octal)?;
        u8::from_str_radix(octal, 8).ok()
    };
    if !text.contains(&b'\\') {
        return OsStr::from_bytes(text).to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        match rest
            .split_at_checked(4)
            .map(|(escape, after)| (digits(escape), after))
        {
            Some((Some(byte), after)) => {
                bytes.push(byte);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_mount_has_the_paths_of_its_line_without_escapes() {
        let text =
            b"36 35 98:0 /a\\040b /srv/my\\040data\\011\\012\\134x rw,noatime shared:1 master:2 - \
                     ext3 /dev/root rw,errors=continue\n\
                     40 36 0:5 / /sys rw - sysfs sysfs rw\nincomplete line\n";
        let mounts = Mount::parse_all(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].root, Path::new("/a b"));
        assert_eq!(mounts[0].point, Path::new("/srv/my data\t\n\\x"));
        assert_eq!(mounts[0].kind, "ext3");
        assert_eq!(mounts[0].options, "rw,errors=continue");
        assert_eq!(mounts[1].point, Path::new("/sys"));
    }

    #[test]
    fn what_is_not_an_escape_stays() {
        for text in ["\\", "\\04", "\\0400", "\\9z9", "\\777", "a\\-12"] {
            let expected = text.replace("\\040", " ");
            assert_eq!(unescape(text.as_bytes()), OsStr::new(&expected), "{text}");
        }
    }
}
