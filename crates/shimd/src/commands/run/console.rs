use std::convert::Infallible;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::console_reader::ConsoleReader;
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

/// The same while it prints, so that no output is rotated away before it is shown.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Console {
    pub(super) fn follow(reader: ConsoleReader) -> Result<Self, Failure> {
        let (box_lives, is_over) = channel();
        let (tell, shown) = oneshot::channel();
        // Not one of the event loop's, which would wait for it in the end.
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || tell.send(show_until(&is_over, reader)))
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

fn show_until(is_over: &Receiver<Infallible>, mut reader: ConsoleReader) -> Result<(), Failure> {
    let mut look_after = LOOK_EVERY;
    loop {
        // Asked before the last look, for the last words.
        let end = is_over.recv_timeout(look_after);
        look_after = if reader.show(print_raw)? {
            LOOK_AGAIN
        } else {
            LOOK_EVERY
        };
        if end == Err(RecvTimeoutError::Disconnected) {
            return reader.check_complete();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tokio::time::timeout;
    use vmm_shim::FILES;

    use super::*;

    /// Far longer than anything takes on a busy machine.
    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_is_no_regular_file_is_neither_waited_for_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let console_of = |name: &str| {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            dir.join(FILES.console)
        };
        mknodat(CWD, console_of("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        symlink(secret, console_of("link")).unwrap();
        fs::create_dir(console_of("directory")).unwrap();
        let _socket = UnixListener::bind(console_of("socket")).unwrap();
        for name in ["fifo", "link", "directory", "socket"] {
            let reader = ConsoleReader::new(dir.path().join(name));
            let mut console = Console::follow(reader).unwrap();
            let failure = timeout(DEADLINE, console.failure()).await;
            assert!(matches!(failure, Ok(Failure::NoConsole)), "{name}");
        }
    }
}
