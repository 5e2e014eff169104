use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::{ioctl_fionbio, ioctl_fionread};

use vmm_protocol::ConsoleOptions;

use super::console_log::ConsoleLog;
use crate::EngineError;

/// The thread that moves a payload's output from a pipe to the [`ConsoleLog`].
#[derive(Debug)]
pub(super) struct Console {
    /// Closing it ends the thread.
    running: PipeWriter,
    thread: JoinHandle<()>,
}

/// Larger ones hardly copy any faster, and every shim has one.
const BUFFER_BYTES: usize = 16 << 10;

impl Console {
    /// Returns the end of the pipe for the payload, too. Only the payload may keep it open.
    pub(super) fn start(
        dir: &Path,
        options: ConsoleOptions,
    ) -> Result<(Self, PipeWriter), EngineError> {
        let mut log = ConsoleLog::open(dir, options)?;
        let pipes = || -> io::Result<_> {
            let (output, theirs) = io::pipe()?;
            // Another process that reads from the pipe must not make this one wait.
            ioctl_fionbio(&output, true)?;
            Ok((output, theirs, io::pipe()?))
        };
        let (mut output, theirs, (ended, running)) =
            pipes().map_err(EngineError::system("open a pipe for the payload's output"))?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let thread = thread::Builder::new()
            .name("shim-console".to_owned())
            .spawn(move || {
                // Without its reader the payload is ended by SIGPIPE.
                let _ = copy(&mut output, &ended, &mut log, &mut buffer);
                log.finish();
            })
            .map_err(EngineError::system(
                "start a thread for the payload's output",
            ))?;
        Ok((Self { running, thread }, theirs))
    }

    /// Returns when all that the payload printed is in the log. To be called when the payload and
    /// its descendants have ended.
    pub(super) fn finish(self) {
        drop(self.running);
        let _ = self.thread.join();
    }
}

/// Copies until the pipe is closed, or `ended` hangs up.
fn copy(
    output: &mut PipeReader,
    ended: &PipeReader,
    log: &mut ConsoleLog,
    buffer: &mut [u8],
) -> io::Result<()> {
    while !wait(output, ended)? {
        match output.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => log.write(&buffer[..length]),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
    // A process that the shim could not kill may hold the pipe open, and may go on printing.
    let mut left = usize::try_from(ioctl_fionread(&*output)?).unwrap_or(usize::MAX);
    while left > 0 {
        let length = left.min(buffer.len());
        match output.read(&mut buffer[..length])? {
            0 => break,
            length => {
                log.write(&buffer[..length]);
                left -= length;
            }
        }
    }
    Ok(())
}

/// Waits for output. True once `ended` has hung up.
fn wait(output: &PipeReader, ended: &PipeReader) -> io::Result<bool> {
    let mut polled = [
        PollFd::new(output.as_fd(), PollFlags::POLLIN),
        // A hang-up is reported without being asked for.
        PollFd::new(ended.as_fd(), PollFlags::empty()),
    ];
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) => Ok(polled[1].any().unwrap_or(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}
