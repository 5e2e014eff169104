use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::thread;

use crossterm::terminal::{disable_raw_mode, enable_raw_mode, size};
use tokio::sync::mpsc;
use vmm_rest::wire::ResizeRequest;

use crate::failure::Failure;

/// The terminal in raw mode: it passes all keys on. Dropping this value restores the terminal.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    pub(super) fn enable() -> Result<Self, Failure> {
        enable_raw_mode().map_err(Failure::system("use the terminal"))?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing else can restore it.
        let _ = disable_raw_mode();
    }
}

pub(super) fn is_stdin_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Returns the size of the terminal, if there is one.
pub(super) fn terminal_size() -> Option<ResizeRequest> {
    let (cols, rows) = size().ok()?;
    (cols > 0 && rows > 0).then(|| ResizeRequest::new(cols.into(), rows.into()))
}

/// How many bytes of stdin are read at once.
const INPUT_CHUNK: usize = 16 << 10;

/// Reads stdin in a thread, which ends with the process: a read of a terminal cannot be cancelled.
/// The channel closes at the end of stdin.
pub(super) fn read_stdin() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let mut stdin = File::from(stdin.map_err(Failure::system("read stdin"))?);
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut chunk = [0; INPUT_CHUNK];
            loop {
                match stdin.read(&mut chunk) {
                    Ok(length) if length > 0 => {
                        if sender.blocking_send(chunk[..length].to_vec()).is_err() {
                            return;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The end, or a terminal that has closed.
                    _ => return,
                }
            }
        })
        .map_err(Failure::system("start a thread"))?;
    Ok(receiver)
}
