use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use vmm_engine::Payload;
use vmm_protocol::{Ending, FailureKind, KILL_SIGNAL, RuntimeExited, RuntimeProcess};

use crate::recorder::Recorder;

/// How long a killed payload may take to vanish before the shim ends without it.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// Takes orders on the payload's behalf: from signals, and from the watchdog.
///
/// Its thread owns the clock, so it calls nothing that can hang with the payload.
pub(crate) struct Control {
    state: Mutex<State>,
    recorder: Arc<Recorder>,
}

/// What tells an attached shim that its runtime is gone.
pub(crate) struct Watchdog {
    /// Hangs up when the runtime releases the box, and when it exits.
    pipe: OwnedFd,
    /// A pidfd: a forked child of the runtime can hold the pipe.
    runtime: Option<OwnedFd>,
}

struct State {
    phase: Phase,
    watchdog: Option<Watchdog>,
    /// How long the payload may take to stop after the watchdog has hung up.
    grace: Duration,
}

/// Who obeys an order.
enum Phase {
    /// The shim, at once. The pipe closes with this phase, which wakes the thread.
    AwaitingSpec { _until: PipeWriter },
    /// The main thread, when it has the payload in hand.
    Starting,
    /// The payload.
    Running,
}

/// What the thread watches for a hang-up.
enum Line {
    /// Until the spec is read.
    Spec(PipeReader),
    /// To the runtime.
    Watchdog(Watchdog),
    None,
}

/// What has been ordered, and by when it must be done.
#[derive(Clone, Copy)]
enum Order {
    None,
    /// Asked to stop, for as long as it takes.
    Stop,
    /// Asked to stop; killed at this time.
    StopBy(Instant),
    /// Killed; the shim ends at this time.
    Kill(Instant),
}

/// The signals that are orders, and those that must not end a shim which cannot write: SIGPIPE
/// without a runtime, SIGXFSZ at a limit of size.
fn orders() -> SigSet {
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

/// To be called before any thread is started: threads inherit the mask. So does what the shim
/// executes, which has to empty it.
pub(crate) fn block_signals() -> io::Result<()> {
    let mut blocked = orders();
    // An engine waits for its children with a signalfd.
    blocked.add(Signal::SIGCHLD);
    Ok(blocked.thread_block()?)
}

impl Control {
    /// Starts the thread. Until [`starting`](Self::starting) an order ends the shim.
    pub(crate) fn start(recorder: Arc<Recorder>) -> io::Result<Arc<Self>> {
        let (spec, until) = io::pipe()?;
        let signals = SignalFd::with_flags(&orders(), SfdFlags::SFD_CLOEXEC)?;
        let control = Arc::new(Self {
            state: Mutex::new(State {
                phase: Phase::AwaitingSpec { _until: until },
                watchdog: None,
                grace: Duration::ZERO,
            }),
            recorder,
        });
        let thread = Arc::clone(&control);
        thread::Builder::new()
            .name("shim-control".to_owned())
            .spawn(move || {
                let run = AssertUnwindSafe(|| thread.run(&signals, Line::Spec(spec)));
                match panic::catch_unwind(run) {
                    Ok(error) => {
                        let message = format!("the shim can no longer take orders: {error}");
                        let ending = Ending::failed(FailureKind::Engine, message);
                        thread.recorder.end_by_force(ending)
                    }
                    Err(_) => thread.recorder.end_with_panic(),
                }
            })?;
        Ok(control)
    }

    /// From now on an order is kept for [`running`](Self::running). `grace` is how long the payload
    /// may take to stop after the watchdog has hung up.
    pub(crate) fn starting(&self, watchdog: Option<Watchdog>, grace: Duration) {
        *self.state() = State {
            phase: Phase::Starting,
            watchdog,
            grace,
        };
    }

    /// From now on orders go to the recorder's payload. True if one came before: obeying it is up
    /// to the caller.
    pub(crate) fn running(&self) -> bool {
        let mut state = self.state();
        state.phase = Phase::Running;
        self.recorder.is_end_requested()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it cannot.
    fn run(&self, signals: &SignalFd, mut line: Line) -> Errno {
        let mut order = Order::None;
        loop {
            let mut polled = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            polled.extend(line.polled());
            match poll(&mut polled, order.timeout()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return error,
            }
            let has_event = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            let signalled = has_event(&polled[0]);
            let hung_up = polled[1..].iter().any(has_event);
            drop(polled);
            if hung_up {
                if let Line::Watchdog(_) = line {
                    let by = Instant::now() + self.state().grace;
                    order = self.stop(order, Some(by));
                }
                line = self
                    .state()
                    .watchdog
                    .take()
                    .map_or(Line::None, Line::Watchdog);
            }
            if signalled {
                match signals.read_signal() {
                    Ok(Some(info)) => order = self.obey(order, info.ssi_signo),
                    Ok(None) | Err(Errno::EINTR) => {}
                    Err(error) => return error,
                }
            }
            order = match order {
                Order::StopBy(at) if at <= Instant::now() => self.kill(order),
                Order::Kill(at) if at <= Instant::now() => self.recorder.end(Ending::Signaled {
                    signal: Signal::SIGKILL as i32,
                }),
                order => order,
            };
        }
    }

    fn obey(&self, order: Order, signal: u32) -> Order {
        match Signal::try_from(signal.cast_signed()) {
            Ok(KILL_SIGNAL) => self.kill(order),
            Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP) => self.stop(order, None),
            _ => order,
        }
    }

    fn stop(&self, order: Order, by: Option<Instant>) -> Order {
        let start = self.pass_on(Signal::SIGTERM, |payload| payload.stop());
        match (order, by.or(start)) {
            (Order::Kill(_) | Order::StopBy(_), _) => order,
            (_, Some(by)) => Order::StopBy(by),
            (_, None) => Order::Stop,
        }
    }

    fn kill(&self, order: Order) -> Order {
        self.pass_on(Signal::SIGKILL, |payload| payload.kill());
        match order {
            Order::Kill(_) => order,
            _ => Order::Kill(Instant::now() + AFTER_KILL),
        }
    }

    /// By when a start has to be over, if there is one.
    fn pass_on(&self, signal: Signal, order: fn(&dyn Payload)) -> Option<Instant> {
        let state = self.state();
        self.recorder.end_was_requested();
        match state.phase {
            // As if by this signal. The state stays locked, so that nothing is started any more.
            Phase::AwaitingSpec { .. } => self.recorder.end(Ending::Signaled {
                signal: signal as i32,
            }),
            Phase::Starting => Some(Instant::now() + state.grace),
            Phase::Running => {
                self.recorder.order(order);
                None
            }
        }
    }
}

impl Watchdog {
    /// `pipe` is the reading end.
    pub(crate) fn new(
        pipe: OwnedFd,
        runtime: Option<&RuntimeProcess>,
    ) -> Result<Self, RuntimeExited> {
        let runtime = runtime.map(RuntimeProcess::watch).transpose()?.flatten();
        Ok(Self { pipe, runtime })
    }
}

impl Line {
    fn polled(&self) -> impl Iterator<Item = PollFd<'_>> {
        let (pipe, runtime) = match self {
            Self::Spec(pipe) => (Some(pipe.as_fd()), None),
            Self::Watchdog(Watchdog { pipe, runtime }) => (Some(pipe.as_fd()), runtime.as_ref()),
            Self::None => (None, None),
        };
        // A hang-up is reported without being asked for.
        let pipe = pipe.map(|fd| PollFd::new(fd, PollFlags::empty()));
        let runtime = runtime.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        pipe.into_iter().chain(runtime)
    }
}

impl Order {
    fn timeout(self) -> PollTimeout {
        match self {
            Self::None | Self::Stop => PollTimeout::NONE,
            Self::StopBy(at) | Self::Kill(at) => {
                // Rounded up, so that the time has come when it returns.
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        }
    }
}
