use std::io::{self, PipeReader, PipeWriter};
use std::thread::{self, JoinHandle};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread, read};
use vmm_protocol::poll::wait_until;
use vmm_protocol::{BoxDir, ConsoleOptions};

use super::console_log::ConsoleLog;
use crate::EngineError;

/// The thread that copies a payload's output from a pipe to the [`ConsoleLog`].
#[derive(Debug)]
pub(super) struct Console {
    /// Dropping it ends the thread.
    keep_running: PipeWriter,
    thread: JoinHandle<()>,
}

/// Each shim has one buffer. A larger one hardly makes the copy faster.
const BUFFER_BYTES: usize = 16 << 10;

impl Console {
    /// Starts the thread. Also returns the write end of the pipe, which only the payload may keep
    /// open.
    pub(super) fn start(
        dir: BoxDir,
        options: ConsoleOptions,
    ) -> Result<(Self, PipeWriter), EngineError> {
        let mut log = ConsoleLog::open(dir, options)?;
        let open_pipes = || -> io::Result<_> {
            let (output, payload_end) = io::pipe()?;
            // Another process could read from the pipe between `poll` and `read`.
            ioctl_fionbio(&output, true)?;
            Ok((output, payload_end, io::pipe()?))
        };
        let (output, payload_end, (ended, keep_running)) =
            open_pipes().map_err(EngineError::system("open a pipe for the payload's output"))?;
        let thread = thread::Builder::new()
            .name("shim-console".to_owned())
            .spawn(move || {
                // On an error the pipe is closed, and SIGPIPE ends the payload at its next write.
                let _ = copy(&output, &ended, &mut log);
                log.finish();
            })
            .map_err(EngineError::system(
                "start a thread for the payload's output",
            ))?;
        Ok((
            Self {
                keep_running,
                thread,
            },
            payload_end,
        ))
    }

    /// Waits until the log contains all output of the payload. The caller must have ended the
    /// payload and its descendants.
    pub(super) fn finish(self) {
        drop(self.keep_running);
        let _ = self.thread.join();
    }
}

/// Copies until the payload closes the pipe, or until `ended` hangs up and the pipe's remaining
/// content is copied.
fn copy(output: &PipeReader, ended: &PipeReader, log: &mut ConsoleLog) -> io::Result<()> {
    // Many payloads write nothing.
    let mut buffer = Vec::new();
    while !wait_for_output(output, ended)? {
        buffer.clear();
        buffer.reserve(BUFFER_BYTES);
        match read(output, spare_capacity(&mut buffer)) {
            Ok(0) => return Ok(()),
            Ok(_) => log.write(&buffer),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // A process that the shim could not kill may hold the pipe open and continue to write.
    let mut remaining = usize::try_from(ioctl_fionread(output)?).unwrap_or(usize::MAX);
    while remaining > 0 {
        buffer.clear();
        buffer.reserve(BUFFER_BYTES);
        match read(output, spare_capacity(&mut buffer))? {
            0 => break,
            length => {
                log.write(&buffer);
                remaining = remaining.saturating_sub(length);
            }
        }
    }
    Ok(())
}

/// Waits for output. Returns true if `ended` has hung up.
fn wait_for_output(output: &PipeReader, ended: &PipeReader) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(output, PollFlags::IN),
        // poll(2) always reports a hang-up.
        PollFd::new(ended, PollFlags::empty()),
    ];
    wait_until(&mut fds, None)?;
    Ok(!fds[1].revents().is_empty())
}
