//! Directories of the host that a guest shares: options, and one virtiofsd for each.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use pidfd_spawn::Command;
use serde::{Deserialize, Serialize};

use super::confinement::Confinement;
use crate::{DetachedMount, EngineError, Helper};

/// A directory of the host that a guest shares, over virtiofs. Everything in it belongs to the guest:
/// root of the guest can create files of any owner and mode there.
///
/// virtiofsd serves it, and needs a shim that runs as root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Share {
    /// The name by which the guest mounts it: up to 36 letters, digits, `-`, `_` and `.`.
    pub tag: String,
    /// The directory.
    pub path: PathBuf,
    /// The directory of the guest on which its agent mounts it. Without, the guest mounts it itself:
    /// `mount -t virtiofs TAG DIR`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PathBuf>,
    /// Whether the guest can only read.
    #[serde(default)]
    pub read_only: bool,
}

/// The maximum number of shares of a guest.
pub(super) const MAX_SHARES: usize = 16;

/// The longest tag of a virtiofs device.
const MAX_TAG_BYTES: usize = 36;

/// The socket of a virtiofsd, until QEMU is connected.
pub(super) const SOCKET: &str = "virtiofsd.sock";

/// The descriptor on which a virtiofsd accepts QEMU.
const SOCKET_FD: i32 = 3;

/// The descriptor of the directory in a virtiofsd.
const DIRECTORY_FD: i32 = 4;

/// Where distributions install virtiofsd.
const PROGRAMS: [Program; 3] = [
    Program::Rust("/usr/libexec/virtiofsd"),
    Program::Rust("/usr/lib/virtiofsd"),
    Program::C("/usr/lib/qemu/virtiofsd"),
];

/// A program that serves a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// The virtiofsd of its own project.
    Rust(&'static str),
    /// The virtiofsd that was a part of QEMU before 8.0.
    C(&'static str),
}

impl Share {
    /// Creates a share that the guest can write to, and that it mounts itself.
    pub fn new(tag: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            tag: tag.into(),
            path: path.into(),
            target: None,
            read_only: false,
        }
    }

    /// Returns the parameter of the kernel by which the agent mounts the share, if it does.
    pub(super) fn kernel_parameter(&self) -> Option<String> {
        let target = self.target.as_ref()?.display();
        let access = if self.read_only { ":ro" } else { "" };
        Some(format!("vmm.share={}:{target}{access}", self.tag))
    }

    fn check(&self) -> Result<(), String> {
        let Self {
            tag, path, target, ..
        } = self;
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=MAX_TAG_BYTES).contains(&tag.len()) || !tag.bytes().all(is_valid) {
            return Err(format!(
                "the tag {tag:?} must have 1 to {MAX_TAG_BYTES} letters, digits, `-`, `_` and `.`"
            ));
        }
        if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err("the path must be absolute, without NUL bytes".to_owned());
        }
        // The kernel splits its command line at spaces, and the agent the parameter at colons.
        let is_special = |c: char| c.is_whitespace() || c.is_control() || ":\"".contains(c);
        match target.as_ref().map(|target| target.to_str()) {
            Some(Some(target)) if target.starts_with('/') && !target.contains(is_special) => Ok(()),
            None => Ok(()),
            _ => Err(
                "the target must be absolute, without white space, quotes and colons".to_owned(),
            ),
        }
    }
}

/// Checks the shares of a guest, which has an agent or not.
pub(super) fn check(shares: &[Share], has_agent: bool) -> Result<(), String> {
    if shares.len() > MAX_SHARES {
        return Err(format!("shares: a guest has at most {MAX_SHARES}"));
    }
    let mut tags = BTreeSet::new();
    for share in shares {
        share
            .check()
            .map_err(|message| format!("shares: {message}"))?;
        if !tags.insert(&share.tag) {
            return Err(format!("shares: two have the tag {:?}", share.tag));
        }
        if share.target.is_some() && !has_agent {
            return Err(
                "shares: the agent mounts a target; set `agent`, or omit the target".to_owned(),
            );
        }
    }
    Ok(())
}

/// Prepares the servers of the shares. Returns the helper processes, and the sockets to them for QEMU, in
/// the order of the shares.
pub(super) fn serve(
    shares: &[Share],
    dir: &Path,
    confinement: &Confinement,
) -> Result<(Vec<Helper>, Vec<OwnedFd>), EngineError> {
    let servers = shares.iter().map(|share| {
        let program = find_program(&PROGRAMS)?;
        let (socket, listener) = connect(&dir.join(SOCKET))
            .map_err(EngineError::system("create a socket to virtiofsd"))?;
        let mut command = program.command(share)?;
        command.fd(SOCKET_FD, listener);
        confinement.apply_to_helper(&mut command)?;
        let name = format!("virtiofsd of the share {}", share.tag);
        Ok((Helper::new(name, command), socket))
    });
    servers.collect()
}

/// Returns the first of the programs that is installed.
fn find_program(programs: &[Program]) -> Result<Program, EngineError> {
    let is_installed = |program: &&Program| Path::new(program.path()).exists();
    let found = programs.iter().find(is_installed).copied();
    found.ok_or(EngineError::VirtiofsdNotFound)
}

/// Returns a connected socket, and the listener that accepts it. No other process can connect: the
/// directory is private, and the file is removed.
fn connect(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let remove = || match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    remove()?;
    // The path of a socket must be short, and that of the directory may be long.
    let dir = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    let listener = UnixListener::bind(&short)?;
    let socket = UnixStream::connect(&short);
    remove()?;
    Ok((socket?.into(), listener.into()))
}

impl Program {
    fn path(self) -> &'static str {
        match self {
            Self::Rust(path) | Self::C(path) => path,
        }
    }

    fn command(self, share: &Share) -> Result<Command, EngineError> {
        let directory = open_directory(share)?;
        let mut command = Command::new(self.path());
        command.arg(format!("--fd={SOCKET_FD}"));
        match self {
            Self::Rust(_) => {
                // It resolves the path, so it cannot get a descriptor.
                command.arg("--shared-dir").arg(&share.path);
                command.arg("--sandbox=chroot");
                if share.read_only {
                    command.arg("--readonly");
                }
            }
            Self::C(_) => {
                let directory = match share.read_only {
                    true => read_only_mount(&share.path)?,
                    false => directory,
                };
                let source = format!("source=/proc/self/fd/{DIRECTORY_FD}/.");
                command.args(["-f", "-o", "sandbox=chroot", "-o", &source]);
                command.fd(DIRECTORY_FD, directory);
            }
        }
        Ok(command)
    }
}

/// Opens the directory, which reports one that does not exist.
fn open_directory(share: &Share) -> Result<OwnedFd, EngineError> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_PATH).bits();
    let opened = File::options()
        .read(true)
        .custom_flags(flags)
        .open(&share.path);
    opened
        .map(OwnedFd::from)
        .map_err(|source| EngineError::GuestFile {
            role: "shared directory",
            path: share.path.clone(),
            source,
        })
}

/// Returns a read-only mount of the directory, which is part of no mount namespace and ends with the last
/// descriptor. The virtiofsd of QEMU has no option for that.
fn read_only_mount(path: &Path) -> Result<OwnedFd, EngineError> {
    let mount = || -> io::Result<OwnedFd> {
        let mount = DetachedMount::copy_all(path)?;
        mount.set_read_only()?;
        Ok(mount.into())
    };
    mount().map_err(EngineError::system(
        "mount a shared directory read-only, which needs root and Linux 5.12",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_share_is_named() {
        let valid = || {
            let mut share = Share::new("data", "/srv");
            share.target = Some("/data".into());
            share
        };
        let cases: [(fn(&mut Share), _); 6] = [
            (|share| share.tag = String::new(), "the tag \"\""),
            (|share| share.tag = "a,b".to_owned(), "the tag \"a,b\""),
            (|share| share.tag = "x".repeat(37), "the tag"),
            (|share| share.path = "srv".into(), "the path must be"),
            (|share| share.target = Some("data".into()), "the target"),
            (|share| share.target = Some("/a b".into()), "the target"),
        ];
        check(&[valid()], true).unwrap();
        for (change, expected) in cases {
            let mut share = valid();
            change(&mut share);
            let error = check(&[share], true).unwrap_err();
            assert!(error.starts_with(&format!("shares: {expected}")), "{error}");
        }
        let error = check(&[valid(), valid()], true).unwrap_err();
        assert!(error.contains("two have the tag"), "{error}");
        let error = check(&[valid()], false).unwrap_err();
        assert!(error.contains("set `agent`"), "{error}");
    }

    #[test]
    fn the_agent_gets_the_target_and_the_access_of_a_share() {
        let mut share = Share::new("data", "/srv");
        assert_eq!(share.kernel_parameter(), None);
        share.target = Some("/mnt/data".into());
        let parameter = share.kernel_parameter();
        assert_eq!(parameter.as_deref(), Some("vmm.share=data:/mnt/data"));
        share.read_only = true;
        let parameter = share.kernel_parameter();
        assert_eq!(parameter.as_deref(), Some("vmm.share=data:/mnt/data:ro"));
    }

    #[test]
    fn a_host_without_virtiofsd_is_an_error_with_the_package() {
        let error = find_program(&[Program::Rust("/no/virtiofsd")]).unwrap_err();
        assert!(matches!(error, EngineError::VirtiofsdNotFound), "{error:?}");
        assert!(error.to_string().contains("package virtiofsd"), "{error}");
        let shell = Program::C("/bin/sh");
        let found = find_program(&[Program::Rust("/no/virtiofsd"), shell]);
        assert_eq!(found.unwrap(), shell);
    }

    #[test]
    fn a_missing_directory_is_an_error_with_its_path() {
        let error = open_directory(&Share::new("data", "/no/directory")).unwrap_err();
        assert!(error.to_string().contains("/no/directory"), "{error}");
    }

    #[test]
    fn a_socket_is_connected_and_leaves_no_file() {
        let parent = tempfile::tempdir().unwrap();
        // Longer than the path of a socket may be.
        let dir = parent.path().join("x".repeat(200));
        fs::create_dir(&dir).unwrap();
        let (socket, listener) = connect(&dir.join(SOCKET)).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        let (accepted, _) = UnixListener::from(listener).accept().unwrap();
        drop(accepted);
        drop(socket);
    }
}
