use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::ListenError;

/// The file of a Unix socket. Removed on drop, unless another socket has replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// Binds the socket in a private directory, sets its mode, and moves it to `path`, so that other
    /// users cannot open it at any time.
    pub(crate) async fn bind(path: &Path) -> Result<(UnixListener, Self), ListenError> {
        check_replaceable(path).await?;
        let at = path.to_owned();
        let bound = tokio::task::spawn_blocking(move || bind_in_private_dir(&at)).await;
        bound
            .map_err(io::Error::from)
            .flatten()
            .map_err(|source| failed(path, source))
    }
}

/// Fails if there is a file at the path that must not be replaced.
async fn check_replaceable(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
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
            // The backlog of the listener is full.
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

fn bind_in_private_dir(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    // Fails if the path is too long for clients to connect to.
    SocketAddr::from_pathname(path)?;
    let mut private = path.as_os_str().to_owned();
    private.push(format!(".{}", std::process::id()));
    let private = PathBuf::from(private);
    // A process with the same pid may have left it when it was killed.
    let _ = fs::remove_dir_all(&private);
    DirBuilder::new().mode(0o700).create(&private)?;
    let bound = bind_and_move(&private, path);
    let _ = fs::remove_dir_all(&private);
    bound
}

fn bind_and_move(private: &Path, path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    // Through a short path: that of the private directory may be too long for a socket address.
    let dir = File::open(private)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", dir.as_raw_fd()))?;
    let temporary = private.join("s");
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    let file = SocketFile {
        path: path.to_owned(),
        inode: inode(&temporary)?,
    };
    fs::rename(&temporary, path)?;
    Ok((listener, file))
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
