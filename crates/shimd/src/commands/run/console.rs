use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::output::print_raw;

/// What a box prints, shown by a thread of its own: nobody may read it, and the box may print
/// faster than anybody reads.
#[derive(Debug)]
pub(super) struct Console {
    /// Hangs up when the box prints no more.
    box_lives: Option<Sender<Infallible>>,
    shown: oneshot::Receiver<Result<(), Failure>>,
}

/// How often to look whether the box has printed anything.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Console {
    /// Of this file, which may not be there yet.
    pub(super) fn follow(path: PathBuf) -> Result<Self, Failure> {
        let (box_lives, is_over) = channel();
        let (tell, shown) = oneshot::channel();
        // Not one of the event loop's, which would wait for it in the end.
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || tell.send(show_until(&is_over, &path)))
            .map_err(Failure::system("start a thread"))?;
        Ok(Self {
            box_lives: Some(box_lives),
            shown,
        })
    }

    /// Why it cannot be shown; while all is well this does not return.
    pub(super) async fn failure(&mut self) -> Failure {
        match (&mut self.shown).await {
            Ok(Err(failure)) => failure,
            _ => std::future::pending().await,
        }
    }

    /// The box has ended: returns when all is shown.
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        self.box_lives = None;
        (&mut self.shown).await.unwrap_or(Ok(()))
    }
}

fn show_until(is_over: &Receiver<Infallible>, path: &Path) -> Result<(), Failure> {
    let mut file = None;
    loop {
        // Asked before the last look, for the last words.
        let end = is_over.recv_timeout(LOOK_EVERY);
        if file.is_none() {
            file = open(path)?;
        }
        if let Some(file) = &mut file {
            show(file)?;
        }
        if end == Err(RecvTimeoutError::Disconnected) {
            return Ok(());
        }
    }
}

/// Neither waits nor goes elsewhere, whatever the payload has put in its place.
fn open(path: &Path) -> Result<Option<File>, Failure> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        // A link, or a socket, open(2).
        Err(Errno::LOOP | Errno::NXIO) => return Err(Failure::NoConsole),
        Err(error) => return Err(unreadable(error.into())),
    };
    match file.metadata().map_err(unreadable)?.is_file() {
        true => Ok(Some(file)),
        false => Err(Failure::NoConsole),
    }
}

/// Prints what is new.
fn show(file: &mut File) -> Result<(), Failure> {
    let mut piece = [0; 1 << 14];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => print_raw(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

fn unreadable(error: io::Error) -> Failure {
    Failure::system("read what the box prints")(error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, mknodat};
    use tokio::time::timeout;

    use super::*;

    /// Far longer than anything takes on a busy machine.
    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_is_no_regular_file_is_neither_waited_for_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(path("secret"), "secret").unwrap();
        symlink(path("secret"), path("link")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        for name in ["fifo", "link", "directory", "socket"] {
            let mut console = Console::follow(path(name)).unwrap();
            let failure = timeout(DEADLINE, console.failure()).await;
            assert!(matches!(failure, Ok(Failure::NoConsole)), "{name}");
        }
    }
}
