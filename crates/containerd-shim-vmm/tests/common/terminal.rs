//! A terminal for a client, as in an SSH session.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use pidfd_spawn::Child;
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::eventually;

/// The end of a pseudoterminal at which its user sits.
pub(crate) struct Terminal {
    file: File,
    client_end: OwnedFd,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub(crate) fn open(rows: u16, cols: u16) -> Self {
        let file = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&file).unwrap();
        unlockpt(&file).unwrap();
        let path = ptsname(&file, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let client_end = open(path.as_c_str(), flags, Mode::empty()).unwrap();
        let terminal = Self {
            file: File::from(file),
            client_end,
            output: Arc::default(),
        };
        terminal.resize(rows, cols);
        let (mut reader, output) = (
            terminal.file.try_clone().unwrap(),
            Arc::clone(&terminal.output),
        );
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                output.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        terminal
    }

    /// Starts a command in the terminal.
    pub(crate) fn spawn(&self, command: &Command) -> Child {
        let end = || self.client_end.try_clone().unwrap();
        pidfd_spawn::Command::new(command.get_program())
            .args(command.get_args())
            .setsid(true)
            .controlling_terminal(true)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap()
    }

    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.file, size).unwrap();
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.file.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows a text.
    pub(crate) fn wait_for(&self, text: &str) {
        let output = || String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned();
        eventually(&format!("the terminal shows {text:?}"), || {
            output().contains(text)
        });
    }
}
