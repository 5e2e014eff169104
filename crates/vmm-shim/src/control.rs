use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::event::{PollFd, PollFlags};
use vmm_engine::Payload;
use vmm_protocol::pidfd::has_exited;
use vmm_protocol::poll::wait_until;
use vmm_protocol::stop_signal::grace_of;
use vmm_protocol::{Ending, FailureKind, KILL_SIGNAL, RuntimeExited, RuntimeProcess};

use crate::exit_reporter::ExitReporter;
use crate::hub::{ControlSocket, HubLauncher, RunningHub};

/// How long the shim waits for a killed payload before it exits without it.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the shim waits for its clients before it exits.
const HUB_TIMEOUT: Duration = Duration::from_millis(500);

/// Handles requests to stop or kill the payload: signals, and the hang-up of the watchdog.
///
/// Runs a thread, which enforces the deadlines. The thread calls nothing that can hang together
/// with the payload.
pub(crate) struct Control {
    state: Mutex<State>,
    reporter: Arc<ExitReporter>,
}

/// The file descriptors that show a shim that its runtime is gone: an attached shim at any time, a
/// detached one until its payload is ready.
pub(crate) struct Watchdog {
    /// One end of a pipe. It hangs up when the runtime closes the other one, or exits.
    pipe: OwnedFd,
    /// A pidfd of the runtime, because a forked child of the runtime can hold the pipe open.
    runtime: Option<OwnedFd>,
    /// Whether the shim is detached.
    is_detached: bool,
}

/// The process of a runtime, with the pidfd that shows its exit, if it could be opened.
pub(crate) struct WatchedRuntime {
    process: RuntimeProcess,
    pub(crate) pidfd: Option<OwnedFd>,
}

impl WatchedRuntime {
    pub(crate) fn of(process: RuntimeProcess) -> Result<Self, RuntimeExited> {
        let pidfd = process.watch()?;
        Ok(Self { process, pidfd })
    }

    /// Returns `self`, or another process that the spec names as the runtime, unless it has exited. Call it after
    /// `shim.pid` is written: a next runtime that has not found it counts on no payload.
    pub(crate) fn or_of(self, process: RuntimeProcess) -> Result<Self, RuntimeExited> {
        match &self.pidfd {
            Some(runtime) if self.process == process => {
                if has_exited(runtime) {
                    Err(RuntimeExited)
                } else {
                    Ok(self)
                }
            }
            _ => Self::of(process),
        }
    }
}

struct State {
    phase: Phase,
    watchdog: Option<Watchdog>,
    /// Starts the hub, until the control thread has taken it.
    launcher: Option<HubLauncher>,
    /// Since the first client.
    hub: Option<RunningHub>,
    /// How long the payload may take to stop, unless the request sets another grace period.
    grace: Duration,
}

/// Why the start of a detached box failed.
pub(crate) const RUNTIME_EXITED: &str = "the runtime exited before the payload was ready";

/// The phase of the shim, which determines who handles a request.
enum Phase {
    /// The control thread exits the shim immediately. The end of this phase drops the pipe, which
    /// wakes the thread.
    AwaitingSpec { _wake_on_drop: PipeWriter },
    /// The main thread kills the payload when the engine has started it.
    Starting,
    /// The control thread passes the request to the payload.
    Running,
}

/// What the control thread watches for a hang-up.
enum HangUpSource {
    /// The pipe of [`Phase::AwaitingSpec`].
    SpecRead(PipeReader),
    Watchdog(Watchdog),
    None,
}

/// What has been requested, and the deadline.
#[derive(Clone, Copy)]
enum StopState {
    NotRequested,
    /// A signal has asked the payload to stop. There is no deadline.
    Stopping,
    /// The payload was asked to stop, and is killed at this time.
    StoppingUntil(Instant),
    /// The payload was killed, and the shim exits at this time.
    KillingUntil(Instant),
}

/// Returns the signals that request the end, and those that must not end the shim when a write
/// fails: SIGPIPE if the runtime is gone, SIGXFSZ at a limit on file sizes.
fn handled_signals() -> SigSet {
    [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        KILL_SIGNAL,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
    ]
    .into_iter()
    .collect()
}

/// Blocks the handled signals. Call it before any thread is started, because threads inherit the
/// mask. A program that the shim executes inherits it, too, and must unblock the signals.
pub(crate) fn block_signals() -> io::Result<()> {
    let mut blocked = handled_signals();
    // An engine waits for its children with a signalfd.
    blocked.add(Signal::SIGCHLD);
    Ok(blocked.thread_block()?)
}

impl Control {
    /// Starts the control thread. Until [`begin_start`](Self::begin_start), a request ends the
    /// shim.
    pub(crate) fn start(reporter: Arc<ExitReporter>) -> io::Result<Arc<Self>> {
        let (spec_read, wake_on_drop) = io::pipe()?;
        let signals = SignalFd::with_flags(&handled_signals(), SfdFlags::SFD_CLOEXEC)?;
        let control = Arc::new(Self {
            state: Mutex::new(State {
                phase: Phase::AwaitingSpec {
                    _wake_on_drop: wake_on_drop,
                },
                watchdog: None,
                launcher: None,
                hub: None,
                grace: Duration::ZERO,
            }),
            reporter,
        });
        let thread = Arc::clone(&control);
        thread::Builder::new()
            .name("shim-control".to_owned())
            .spawn(move || {
                let source = HangUpSource::SpecRead(spec_read);
                let run = AssertUnwindSafe(|| thread.run(&signals, source));
                match panic::catch_unwind(run) {
                    Ok(error) => {
                        let message = format!("the shim cannot handle signals any more: {error}");
                        let ending = Ending::failed(FailureKind::Engine, message);
                        thread.reporter.kill_and_exit(ending)
                    }
                    Err(_) => thread.reporter.exit_with_panic(),
                }
            })?;
        Ok(control)
    }

    /// Announces that the main thread starts the payload. Until
    /// [`payload_started`](Self::payload_started), a request is only kept.
    ///
    /// `grace` is how long the payload may take to stop.
    pub(crate) fn begin_start(
        &self,
        watchdog: Option<Watchdog>,
        socket: Option<ControlSocket>,
        grace: Duration,
    ) {
        *self.state() = State {
            phase: Phase::Starting,
            watchdog,
            launcher: socket.map(HubLauncher::new),
            hub: None,
            grace,
        };
    }

    /// Waits until clients have what the payload has sent before its end. The caller has waited for the payload.
    pub(crate) fn finish_hub(&self) {
        let hub = self.state().hub.take();
        if let Some(hub) = hub {
            hub.finish(HUB_TIMEOUT);
        }
    }

    /// Announces that the payload has started. From now on, requests go to the reporter's payload.
    ///
    /// Returns true if a request arrived earlier. The caller must then kill the payload.
    pub(crate) fn payload_started(&self) -> bool {
        let mut state = self.state();
        state.phase = Phase::Running;
        self.reporter.is_end_requested()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles requests until a system call fails.
    fn run(&self, signals: &SignalFd, mut source: HangUpSource) -> io::Error {
        let mut stop = StopState::NotRequested;
        let mut launcher: Option<HubLauncher> = None;
        loop {
            let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
            fds.extend(source.poll_fds());
            let sources = fds.len();
            let now = Instant::now();
            fds.extend(launcher.as_ref().and_then(|it| it.poll_fd(now)));
            let retry = launcher.as_ref().and_then(|it| it.deadline(now));
            let deadline = stop.deadline().into_iter().chain(retry).min();
            if let Err(error) = wait_until(&mut fds, deadline) {
                return error;
            }
            let has_event = |fd: &PollFd<'_>| !fd.revents().is_empty();
            let has_signal = has_event(&fds[0]);
            let has_hung_up = fds[1..sources].iter().any(has_event);
            let has_client = fds[sources..].iter().any(has_event);
            drop(fds);
            if has_client
                && let Some(hub) = launcher.as_mut().and_then(|it| it.launch(&self.reporter))
            {
                self.state().hub = Some(hub);
                launcher = None;
            }
            if has_hung_up {
                match &source {
                    HangUpSource::Watchdog(watchdog) if !watchdog.is_detached => {
                        let grace = self.state().grace;
                        stop = self.stop(stop, grace, Some(Instant::now() + grace));
                    }
                    // A start ends with the runtime that requested it: another one would take the
                    // payload for one that is ready.
                    HangUpSource::Watchdog(_) if !self.reporter.has_reported() => {
                        let ending = Ending::failed(FailureKind::Engine, RUNTIME_EXITED);
                        self.reporter.kill_and_exit(ending)
                    }
                    _ => {}
                }
                let mut state = self.state();
                let watchdog = state.watchdog.take();
                source = watchdog.map_or(HangUpSource::None, HangUpSource::Watchdog);
                launcher = state.launcher.take().or(launcher);
            }
            if has_signal {
                match signals.read_signal() {
                    Ok(Some(info)) => stop = self.handle_signal(stop, &info),
                    Ok(None) | Err(Errno::EINTR) => {}
                    Err(error) => return error.into(),
                }
            }
            stop = match stop {
                StopState::StoppingUntil(deadline) if deadline <= Instant::now() => self.kill(stop),
                StopState::KillingUntil(deadline) if deadline <= Instant::now() => {
                    self.reporter.exit(Ending::Signaled {
                        signal: Signal::SIGKILL as i32,
                    })
                }
                stop => stop,
            };
        }
    }

    fn handle_signal(&self, stop: StopState, info: &siginfo) -> StopState {
        match Signal::try_from(info.ssi_signo.cast_signed()) {
            Ok(KILL_SIGNAL) => self.kill(stop),
            Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP) => {
                let requested = grace_of(info.ssi_code, info.ssi_int);
                let grace = requested.unwrap_or_else(|| self.state().grace);
                self.stop(stop, grace, None)
            }
            _ => stop,
        }
    }

    /// Asks the payload to stop within the grace period. A deadline that is already set remains.
    fn stop(&self, stop: StopState, grace: Duration, deadline: Option<Instant>) -> StopState {
        let is_starting = self.request_end(Signal::SIGTERM, move |payload| payload.stop(grace));
        let start_deadline = is_starting.then(|| Instant::now() + grace);
        match (stop, deadline.or(start_deadline)) {
            (StopState::KillingUntil(_) | StopState::StoppingUntil(_), _) => stop,
            (_, Some(deadline)) => StopState::StoppingUntil(deadline),
            (_, None) => StopState::Stopping,
        }
    }

    fn kill(&self, stop: StopState) -> StopState {
        self.request_end(Signal::SIGKILL, |payload| payload.kill());
        match stop {
            StopState::KillingUntil(_) => stop,
            _ => StopState::KillingUntil(Instant::now() + KILL_TIMEOUT),
        }
    }

    /// Passes a request on, depending on the phase. Returns whether the payload is starting.
    fn request_end(
        &self,
        signal: Signal,
        call: impl Fn(&dyn Payload) + Send + Copy + 'static,
    ) -> bool {
        let state = self.state();
        self.reporter.mark_end_requested();
        match state.phase {
            // The state remains locked, so the main thread cannot start the payload any more.
            Phase::AwaitingSpec { .. } => self.reporter.exit(Ending::Signaled {
                signal: signal as i32,
            }),
            Phase::Starting => true,
            Phase::Running => {
                self.reporter.call_payload(call);
                false
            }
        }
    }
}

impl Watchdog {
    /// Creates the watchdog of an attached shim from the read end of its pipe, and the runtime if its
    /// process is known.
    pub(crate) fn attached(pipe: OwnedFd, runtime: Option<WatchedRuntime>) -> Self {
        Self {
            pipe,
            runtime: runtime.and_then(|runtime| runtime.pidfd),
            is_detached: false,
        }
    }

    /// Creates the watchdog of a detached shim from the write end of the pipe for its report.
    pub(crate) fn detached(pipe: OwnedFd, runtime: Option<WatchedRuntime>) -> Self {
        Self {
            is_detached: true,
            ..Self::attached(pipe, runtime)
        }
    }
}

impl HangUpSource {
    fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let (pipe, runtime) = match self {
            Self::SpecRead(pipe) => (Some(pipe.as_fd()), None),
            Self::Watchdog(watchdog) => (Some(watchdog.pipe.as_fd()), watchdog.runtime.as_ref()),
            Self::None => (None, None),
        };
        // poll(2) always reports a hang-up.
        let pipe = pipe.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::empty()));
        let runtime = runtime.map(|fd| PollFd::new(fd, PollFlags::IN));
        pipe.into_iter().chain(runtime)
    }
}

impl StopState {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::NotRequested | Self::Stopping => None,
            Self::StoppingUntil(deadline) | Self::KillingUntil(deadline) => Some(deadline),
        }
    }
}
