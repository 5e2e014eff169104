use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::ListenError;

/// The file of a Unix socket; removed when it is dropped, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// Binds in a private directory, and moves the socket to its place when it has its mode:
    /// nobody else can open it at any moment.
    pub(crate) async fn bind(path: &Path) -> Result<(UnixListener, Self), ListenError> {
        make_way(path).await?;
        let at = path.to_owned();
        let bound = tokio::task::spawn_blocking(move || bind_privately(&at)).await;
        bound
            .map_err(io::Error::from)
            .flatten()
            .map_err(|source| failed(path, source))
    }
}

/// Whether what is there may be replaced.
async fn make_way(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            let path = path.to_owned();
            return Err(ListenError::NoSocket { path });
        }
        Ok(_) => {}
    }
    use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    let in_use = || ListenError::InUse {
        path: path.to_owned(),
    };
    match UnixStream::connect(path).await {
        Ok(_) => Err(in_use()),
        Err(error) => match error.kind() {
            ConnectionRefused | NotFound => Ok(()),
            // Its backlog is full.
            WouldBlock => Err(in_use()),
            _ => Err(failed(path, error)),
        },
    }
}

fn failed(path: &Path, source: io::Error) -> ListenError {
    ListenError::System {
        at: path.display().to_string(),
        source,
    }
}

fn bind_privately(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    // Clients could not connect to it.
    SocketAddr::from_pathname(path)?;
    let mut private = path.as_os_str().to_owned();
    private.push(format!(".{}", std::process::id()));
    let private = PathBuf::from(private);
    // Left by a process of the same number that was killed at the wrong moment.
    let _ = fs::remove_dir_all(&private);
    DirBuilder::new().mode(0o700).create(&private)?;
    let bound = bind_in(&private, path);
    let _ = fs::remove_dir_all(&private);
    bound
}

fn bind_in(private: &Path, path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    // Bound by a path that is short: the longer one below may be too long for a socket's name.
    let dir = File::open(private)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", dir.as_raw_fd()))?;
    let fresh = private.join("s");
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    let file = SocketFile {
        path: path.to_owned(),
        inode: inode(&fresh)?,
    };
    fs::rename(&fresh, path)?;
    Ok((listener, file))
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
