//! Starts and watches the helper processes of a payload.

mod log;

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags};
use vmm_engine::{EngineError, Payload, descendants};
use vmm_protocol::pidfd::{self, has_exited};
use vmm_protocol::poll::wait_until;
use vmm_protocol::{BoxDir, Ending, FailureKind};

use self::log::HelperLog;
use crate::exit_reporter::ExitReporter;

/// How long the payload may take to end after a helper has exited with 0. QEMU hangs up on its helpers
/// before it exits.
const PAYLOAD_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a killed payload may take to end before the shim exits without it.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How often to look for the status of a process whose pidfd is ready, while a tracer holds it back.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The helpers of a payload, which a thread watches.
pub(crate) struct Helpers {
    /// Dropping it ends the thread.
    payload_runs: PipeWriter,
    thread: JoinHandle<Option<Ending>>,
    count: u32,
}

impl Helpers {
    /// Starts the helpers that the payload declares. Returns `None` if it has none.
    ///
    /// Call it on the main thread: the helpers die with the thread that starts them.
    ///
    /// # Errors
    ///
    /// [`EngineError`]. The helpers that have been started still run: they end with the shim.
    pub(crate) fn start(
        payload: &dyn Payload,
        dir: &BoxDir,
        reporter: &Arc<ExitReporter>,
    ) -> Result<Option<Self>, EngineError> {
        let declared = payload.helpers();
        if declared.is_empty() {
            return Ok(None);
        }
        let system_error = || EngineError::system("watch the helper processes");
        let (log, output) = HelperLog::open(dir)?;
        let (payload_end, payload_runs) = io::pipe().map_err(system_error())?;
        let payload_pidfd = match payload.pid().map(pidfd::open) {
            Some(Err(error)) if error.raw_os_error() != Some(Errno::ESRCH as i32) => {
                return Err(system_error()(error));
            }
            Some(Ok(pidfd)) => pidfd,
            _ => None,
        };
        let mut running = Vec::new();
        for helper in declared {
            let name = helper.name().to_owned();
            let child = helper.start(dir.path(), &output)?;
            running.push(Running {
                name,
                pid: child.id(),
                pidfd: child.into_pidfd(),
            });
        }
        let count = u32::try_from(running.len()).unwrap_or(u32::MAX);
        dir.write_helper_count(count)?;
        let mut watch = Watch {
            running,
            log: Some(log),
            payload_end,
            payload_pidfd,
            reporter: Arc::clone(reporter),
        };
        let thread = thread::Builder::new()
            .name("shim-helpers".to_owned())
            .spawn(move || {
                let reporter = Arc::clone(&watch.reporter);
                panic::catch_unwind(AssertUnwindSafe(|| watch.run()))
                    .unwrap_or_else(|_| reporter.exit_with_panic())
            })
            .map_err(system_error())?;
        Ok(Some(Self {
            payload_runs,
            thread,
            count,
        }))
    }

    /// Returns the number of helpers.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Returns the ending of the box if the end of a helper is the cause, provided that the payload has failed. The
    /// caller has waited for the payload.
    pub(crate) fn finish(self) -> Option<Ending> {
        drop(self.payload_runs);
        self.thread.join().ok().flatten()
    }
}

/// A helper that has been started.
struct Running {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
}

/// What the thread watches.
struct Watch {
    running: Vec<Running>,
    /// `None` once no helper holds the pipe.
    log: Option<HelperLog>,
    /// Hangs up when the main thread has waited for the payload.
    payload_end: PipeReader,
    payload_pidfd: Option<OwnedFd>,
    reporter: Arc<ExitReporter>,
}

impl Watch {
    /// Watches the helpers until the payload has ended. Returns the ending of the box if the end of a helper is
    /// the cause.
    fn run(&mut self) -> Option<Ending> {
        let mut deadline = None;
        loop {
            if self.wait(deadline) {
                return self.killed_helper();
            }
            deadline = None;
            if let Some((ending, grace)) = self.ended_helper() {
                if self.payload_ends_within(grace) {
                    return None;
                }
                self.reporter.call_payload(|payload| payload.kill());
                if !self.payload_ends_within(KILL_TIMEOUT) {
                    self.reporter.exit(ending);
                }
                return Some(ending);
            } else if self.running.iter().any(|helper| has_exited(&helper.pidfd)) {
                deadline = Some(Instant::now() + POLL_INTERVAL);
            }
        }
    }

    /// Returns the ending of the box that follows from a helper that has ended, and how long the payload
    /// has to end, too, which makes the payload the cause.
    fn ended_helper(&mut self) -> Option<(Ending, Duration)> {
        self.running.iter().find_map(|helper| {
            if !has_exited(&helper.pidfd) {
                return None;
            }
            match descendants::take_status(helper.pid) {
                Ok(status) => status.map(|status| helper.ending(status)),
                Err(error) => {
                    let message = format!("{} ended; its status is lost: {error}", helper.name);
                    let ending = Ending::failed(FailureKind::Engine, message);
                    Some((ending, PAYLOAD_EXIT_TIMEOUT))
                }
            }
        })
    }

    /// Returns the ending of the box if a signal has ended a helper, which the shim did not send: a payload that
    /// has failed too may have done so for lack of the helper.
    fn killed_helper(&self) -> Option<Ending> {
        self.running.iter().find_map(|helper| {
            let status = descendants::take_status(helper.pid).ok().flatten();
            let status = status.filter(|status| status.signal().is_some())?;
            Some(helper.ending(status).0)
        })
    }

    /// Waits until a helper or the payload has ended, or until the deadline. Copies the output of the
    /// helpers. Returns true if the payload has ended.
    fn wait(&mut self, deadline: Option<Instant>) -> bool {
        // poll(2) always reports a hang-up.
        let mut fds = vec![PollFd::new(&self.payload_end, PollFlags::empty())];
        fds.extend(self.log.iter().map(readable));
        match deadline {
            // The end of a helper is already known.
            Some(_) => fds.extend(self.payload_pidfd.iter().map(readable)),
            None => fds.extend(self.running.iter().map(|helper| readable(&helper.pidfd))),
        }
        let _ = wait_until(&mut fds, deadline);
        let has_ended = !fds[0].revents().is_empty();
        drop(fds);
        if self.log.as_mut().is_some_and(|log| !log.copy()) {
            self.log = None;
        }
        has_ended || self.payload_pidfd.as_ref().is_some_and(has_exited)
    }

    fn payload_ends_within(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.wait(Some(deadline)) {
                return true;
            }
            if deadline <= Instant::now() {
                return false;
            }
        }
    }
}

fn readable(fd: &impl AsFd) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::IN)
}

impl Running {
    fn ending(&self, status: ExitStatus) -> (Ending, Duration) {
        let exit = match status.signal() {
            Some(signal) => Ending::Signaled { signal },
            None => Ending::Exited {
                code: status.code().unwrap_or(255),
            },
        };
        let grace = if status.success() {
            PAYLOAD_EXIT_TIMEOUT
        } else {
            Duration::ZERO
        };
        let name = self.name.clone();
        let exit = Box::new(exit);
        (Ending::Helper { name, exit }, grace)
    }
}
