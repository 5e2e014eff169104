//! The agent of a guest, as the shim sees it: it gets ready, runs the workload, and shuts the guest
//! down.
//!
//! ```text
//! clients ── hub ──┐
//!                  ├── relay ── serial port ── agent
//! workload, stop ──┘
//! ```

mod environment;
mod relay;
mod workload;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_protocol::BootTimes;
use vmm_protocol::frames::{RequestError, RequestErrorKind};

pub(super) use self::environment::GuestEnvironment;
use self::relay::Relay;
pub(super) use self::workload::Workload;
use crate::{ControlChannel, EngineError, PayloadExit};

/// The agent of a guest. A thread relays the frames.
pub(super) struct Agent {
    requests: Sender<Request>,
    shared: Arc<Shared>,
}

/// What the thread is asked to do.
enum Request {
    /// Ask the agent to end all processes and to power the guest off.
    Shutdown { grace: Duration },
    /// Relay the frames of this client, in place of those of an earlier one.
    Serve(UnixStream),
}

/// What the thread and its callers share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable when there is a request.
    wake: EventFd,
}

#[derive(Default)]
struct State {
    start: Start,
    /// How the workload ended.
    exit: Option<PayloadExit>,
    /// Whether QEMU has closed the port, and everything that it had sent is handled.
    is_closed: bool,
}

/// How far the guest has started.
#[derive(Default)]
enum Start {
    #[default]
    Booting,
    /// The agent is ready, and has started the workload.
    Ready(BootTimes),
    /// The guest cannot become ready. Holds the error until the waiter takes it.
    Failed(Option<EngineError>),
}

impl Agent {
    /// Starts the thread. `spawned` is when QEMU was spawned. The thread starts the workload when the
    /// agent is ready, and shuts the guest down when it has ended; it calls `on_exit` then.
    pub(super) fn start(
        port: UnixStream,
        spawned: Instant,
        environment: GuestEnvironment,
        workload: Option<Workload>,
        on_exit: impl FnOnce() + Send + 'static,
    ) -> Result<Self, EngineError> {
        let start = || -> io::Result<Self> {
            let (requests, receiver) = mpsc::channel();
            let shared = Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            });
            let relay = Relay::new(
                port,
                spawned,
                environment,
                workload,
                Box::new(on_exit),
                receiver,
                Arc::clone(&shared),
            )?;
            relay.spawn()?;
            Ok(Self { requests, shared })
        };
        start().map_err(EngineError::system("connect to the agent of the guest"))
    }

    /// Waits until the agent is ready and has started the workload.
    pub(super) fn wait_ready(&self) -> Result<(), EngineError> {
        let is_booting =
            |state: &mut State| matches!(state.start, Start::Booting) && !state.is_closed;
        let state = self
            .shared
            .changed
            .wait_while(self.shared.state(), is_booting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        match &mut state.start {
            Start::Ready(_) => Ok(()),
            Start::Failed(error) => Err(error.take().unwrap_or(EngineError::EndedEarly)),
            Start::Booting => Err(EngineError::EndedEarly),
        }
    }

    /// Returns how long the guest took to boot, once it is ready.
    pub(super) fn boot_times(&self) -> Option<BootTimes> {
        match self.shared.state().start {
            Start::Ready(times) => Some(times),
            _ => None,
        }
    }

    /// Asks the agent to end all processes of the guest, with SIGKILL after `grace`, and to power it
    /// off. Does not block.
    pub(super) fn request_shutdown(&self, grace: Duration) {
        self.request(Request::Shutdown { grace });
    }

    /// Waits until everything that the agent has sent is handled, and returns how the workload ended,
    /// if that is known. The caller must have ended QEMU.
    pub(super) fn finish(&self, timeout: Duration) -> Option<PayloadExit> {
        let is_open = |state: &mut State| !state.is_closed;
        let result = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), timeout, is_open);
        let (state, _) = result.unwrap_or_else(PoisonError::into_inner);
        state.exit
    }

    fn request(&self, request: Request) {
        // Fails after the end of the guest, which fulfills a shutdown and hangs up on a client.
        let _ = self.requests.send(request);
        let _ = self.shared.wake.write(1);
    }
}

impl ControlChannel for Agent {
    /// Opens a connection to the agent.
    fn open(&self) -> Result<OwnedFd, RequestError> {
        if !matches!(self.shared.state().start, Start::Ready(_)) {
            let message = "the guest still boots; wait until the box is running";
            return Err(RequestError::new(RequestErrorKind::NotReady, message));
        }
        let (client, relay) = UnixStream::pair().map_err(|error| {
            let message = format!("cannot open a connection to the agent: {error}");
            RequestError::new(RequestErrorKind::Failed, message)
        })?;
        self.request(Request::Serve(relay));
        Ok(client.into())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
