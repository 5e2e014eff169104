use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::recorder::Recorder;
use crate::{Ending, Payload};

/// Tells a shim to kill its payload, with all that descends from it, and to end. Unlike SIGKILL to
/// the shim it leaves no descendant behind, and an exit record.
pub const KILL_SIGNAL: Signal = Signal::SIGUSR1;

/// How long a killed payload may take to vanish before the shim ends without it.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// Takes orders on the payload's behalf: from signals, and from the watchdog.
pub(crate) struct Control {
    payload: Mutex<Option<Arc<dyn Payload>>>,
    recorder: Arc<Recorder>,
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

/// The signals that are orders, and SIGPIPE, which must not end a shim whose runtime is gone.
fn orders() -> SigSet {
    [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        KILL_SIGNAL,
        Signal::SIGPIPE,
    ]
    .into_iter()
    .collect()
}

/// To be called before any thread is started: threads inherit the mask. So does what the shim
/// executes, which has to empty it.
pub(crate) fn block_signals() -> io::Result<()> {
    Ok(orders().thread_block()?)
}

impl Control {
    /// Starts the thread. `watchdog` is a pipe's reading end and how long the payload may take to
    /// stop after it has hung up.
    pub(crate) fn start(
        recorder: Arc<Recorder>,
        watchdog: Option<(OwnedFd, Duration)>,
    ) -> io::Result<Arc<Self>> {
        let control = Arc::new(Self {
            payload: Mutex::new(None),
            recorder,
        });
        let signals = SignalFd::with_flags(&orders(), SfdFlags::SFD_CLOEXEC)?;
        let thread = Arc::clone(&control);
        thread::Builder::new()
            .name("shim-control".to_owned())
            .spawn(move || {
                let run = AssertUnwindSafe(|| thread.run(&signals, watchdog));
                if panic::catch_unwind(run).is_err() {
                    thread.recorder.end_with_panic();
                }
            })?;
        Ok(control)
    }

    /// From now on orders go to the payload; until now they ended the shim.
    pub(crate) fn command(&self, payload: Arc<dyn Payload>) {
        *self.payload.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
    }

    fn run(&self, signals: &SignalFd, watchdog: Option<(OwnedFd, Duration)>) {
        let mut order = Order::None;
        let mut watchdog = watchdog;
        loop {
            let mut polled = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            // A hang-up is reported without being asked for.
            polled.extend(
                watchdog
                    .as_ref()
                    .map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::empty())),
            );
            match poll(&mut polled, order.timeout()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    let _ = writeln!(io::stderr(), "vmm-shim: cannot poll: {error}");
                    return;
                }
            }
            let hung_up = polled.get(1).and_then(PollFd::any).unwrap_or(false);
            let signalled = polled[0].any().unwrap_or(false);
            drop(polled);
            if hung_up && let Some((_, grace)) = watchdog.take() {
                order = self.stop(order, Some(Instant::now() + grace));
            }
            if signalled && let Ok(Some(info)) = signals.read_signal() {
                match Signal::try_from(info.ssi_signo.cast_signed()) {
                    Ok(KILL_SIGNAL) => order = self.kill(),
                    Ok(Signal::SIGPIPE) | Err(_) => {}
                    Ok(_) => order = self.stop(order, None),
                }
            }
            order = match order {
                Order::StopBy(at) if at <= Instant::now() => self.kill(),
                Order::Kill(at) if at <= Instant::now() => self.recorder.end(Ending::Signaled {
                    signal: Signal::SIGKILL as i32,
                }),
                order => order,
            };
        }
    }

    fn stop(&self, order: Order, by: Option<Instant>) -> Order {
        self.payload_or_end(Signal::SIGTERM).stop();
        match (order, by) {
            (Order::Kill(_) | Order::StopBy(_), _) => order,
            (_, Some(by)) => Order::StopBy(by),
            (_, None) => Order::Stop,
        }
    }

    fn kill(&self) -> Order {
        self.payload_or_end(Signal::SIGKILL).kill();
        Order::Kill(Instant::now() + AFTER_KILL)
    }

    /// Without a payload there is nothing to wait for: the shim ends, as if by this signal.
    fn payload_or_end(&self, signal: Signal) -> Arc<dyn Payload> {
        self.recorder.end_was_requested();
        let payload = self.payload.lock().unwrap_or_else(PoisonError::into_inner);
        match payload.as_ref() {
            Some(payload) => Arc::clone(payload),
            None => self.recorder.end(Ending::Signaled {
                signal: signal as i32,
            }),
        }
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
