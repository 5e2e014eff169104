use std::convert::Infallible;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use vmm_runtime::ConsoleReader;

use crate::failure::Failure;
use crate::output::print_raw;

/// A thread that prints the output of a box. Writing to stdout may block for long: its reader may
/// be slow, or not read at all.
#[derive(Debug)]
pub(super) struct Console {
    /// Dropped when the box has ended.
    box_alive: Option<Sender<Infallible>>,
    result: oneshot::Receiver<Result<(), Failure>>,
}

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The interval after new output, so that the shim does not rotate a file before it is read.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Console {
    pub(super) fn spawn(reader: ConsoleReader) -> Result<Self, Failure> {
        let (box_alive, box_ended) = channel();
        let (sender, result) = oneshot::channel();
        // Not a blocking task of tokio: the tokio runtime would wait for it at its end.
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || sender.send(print_until(&box_ended, reader)))
            .map_err(Failure::system("start a thread"))?;
        Ok(Self {
            box_alive: Some(box_alive),
            result,
        })
    }

    /// Returns why the output cannot be printed. Waits forever if there is no failure.
    pub(super) async fn failure(&mut self) -> Failure {
        match (&mut self.result).await {
            Ok(Err(failure)) => failure,
            _ => std::future::pending().await,
        }
    }

    /// Waits until all output is printed. To be called when the box has ended.
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        self.box_alive = None;
        (&mut self.result).await.unwrap_or(Ok(()))
    }
}

fn print_until(box_ended: &Receiver<Infallible>, mut reader: ConsoleReader) -> Result<(), Failure> {
    let mut interval = POLL_INTERVAL;
    let mut chunk = [0; 1 << 14];
    loop {
        // Checked before the read, so that a last read follows the end of the box.
        let end = box_ended.recv_timeout(interval);
        interval = POLL_INTERVAL;
        loop {
            let length = reader.read(&mut chunk)?;
            if length == 0 {
                break;
            }
            print_raw(&chunk[..length])?;
            interval = BUSY_POLL_INTERVAL;
        }
        if end == Err(RecvTimeoutError::Disconnected) {
            return match reader.missing_bytes() {
                0 => Ok(()),
                bytes => Err(Failure::OutputRotated { bytes }),
            };
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
    use vmm_runtime::ConsoleError;
    use vmm_shim::BoxDir;

    use super::*;

    /// Only a test that fails takes this long.
    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let console_of = |name: &str| {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            dir.join("console.log")
        };
        mknodat(CWD, console_of("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        symlink(secret, console_of("link")).unwrap();
        fs::create_dir(console_of("directory")).unwrap();
        let _socket = UnixListener::bind(console_of("socket")).unwrap();
        for name in ["fifo", "link", "directory", "socket"] {
            let reader = ConsoleReader::new(BoxDir::new(dir.path().join(name)));
            let mut console = Console::spawn(reader).unwrap();
            let failure = timeout(TEST_TIMEOUT, console.failure()).await;
            assert!(
                matches!(failure, Ok(Failure::Console(ConsoleError::NotAConsole))),
                "{name}"
            );
        }
    }
}
