use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

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

fn open(path: &Path) -> Result<Option<File>, Failure> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error)),
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
