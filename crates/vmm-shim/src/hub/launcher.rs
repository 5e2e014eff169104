use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::{ControlSocket, Hub, RunningHub};
use crate::exit_reporter::ExitReporter;

/// How long clients wait until the shim tries again to start the hub.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Starts the hub for the first client.
pub(crate) struct HubLauncher {
    socket: Arc<ControlSocket>,
    /// When to try again, after the kernel had no thread or memory for the hub.
    retry: Option<Instant>,
}

impl HubLauncher {
    pub(crate) fn new(socket: ControlSocket) -> Self {
        Self {
            socket: Arc::new(socket),
            retry: None,
        }
    }

    /// Returns what shows that a client waits. `None` before the [next attempt](Self::deadline).
    pub(crate) fn poll_fd(&self, now: Instant) -> Option<PollFd<'_>> {
        let is_due = self.deadline(now).is_none();
        is_due.then(|| PollFd::new(&*self.socket, PollFlags::IN))
    }

    /// Returns when to try again, if that is not due yet.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.retry.filter(|retry| *retry > now)
    }

    /// Starts the hub. Returns `None` if the caller has to try again later.
    pub(crate) fn launch(&mut self, reporter: &Arc<ExitReporter>) -> Option<RunningHub> {
        match Hub::start(Arc::clone(&self.socket), Arc::clone(reporter)) {
            Ok(hub) => Some(hub),
            Err(error) => {
                if self.retry.is_none() {
                    let _ = writeln!(
                        io::stderr(),
                        "vmm-shim: clients wait until a thread for them can start: {error}"
                    );
                }
                self.retry = Some(Instant::now() + RETRY_INTERVAL);
                None
            }
        }
    }
}
