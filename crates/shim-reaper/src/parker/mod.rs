pub(crate) mod backend;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use self::backend::Backend;
use crate::core::Core;
use crate::kernel::{Linux, Watches};
use crate::readiness::{Alarm, Host, KernelEvents};
use crate::wake_event::WakeEvent;

/// Runs the worker on a thread of its own, which blocks in the epoll of pidfds or in an io_uring. The worker
/// of a tokio runtime needs a second epoll, that of tokio, which adds a wake-up and a system call to every exit.
#[derive(Debug)]
pub(crate) struct Parker {
    core: Arc<Core<Linux>>,
    wake_event: Arc<WakeEvent>,
    /// Whether the kernel may have an event that the worker has not processed.
    has_events: Cell<bool>,
    /// The latest time at which the thread stops blocking.
    deadline: Cell<Option<Instant>>,
}

impl Parker {
    /// # Errors
    ///
    /// Returns an error if the descriptors are exhausted.
    pub(crate) fn new(core: Arc<Core<Linux>>) -> io::Result<Self> {
        let wake_event = Arc::new(WakeEvent::new()?);
        core.shared
            .kernel
            .watches()
            .add_wake_event(wake_event.as_fd())?;
        Ok(Self {
            core,
            wake_event,
            has_events: Cell::new(true),
            deadline: Cell::new(None),
        })
    }

    fn watches(&self) -> &Watches {
        self.core.shared.kernel.watches()
    }

    /// Polls a future until it is ready. Blocks the thread in between.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::clone(&self.wake_event));
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        let mut backend = Backend::new(&self.core.shared.kernel, &self.wake_event);
        loop {
            self.deadline.set(None);
            if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return value;
            }
            self.park(&mut backend);
        }
    }

    /// Blocks until the kernel has an event, the waker is woken or the deadline has passed.
    fn park(&self, backend: &mut Backend<'_>) {
        let now = Instant::now();
        let left = |deadline: Instant| deadline.saturating_duration_since(now);
        match backend.block(self.deadline.get().map(left)) {
            // The worker may not have taken the events of an earlier call.
            Ok(found) => self.has_events.set(self.has_events.get() || found),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "cannot wait for process events");
                thread::sleep(self.core.shared.sweep_interval);
            }
        }
        if self.watches().take_woken() {
            self.wake_event.clear();
        }
    }
}

impl Drop for Parker {
    fn drop(&mut self) {
        self.watches().remove_wake_event(self.wake_event.as_fd());
    }
}

impl Host for Parker {
    fn kernel_events(&self) -> impl KernelEvents {
        let mut events = ParkedEvents {
            parker: self,
            has_timer: false,
        };
        events.retry_setup(self.core.shared.sweep_interval);
        events
    }

    fn alarm(&self) -> impl Alarm {
        ParkedAlarm(self)
    }
}

#[derive(Debug)]
struct ParkedEvents<'a> {
    parker: &'a Parker,
    has_timer: bool,
}

impl KernelEvents for ParkedEvents<'_> {
    fn retry_setup(&mut self, sweep_interval: Duration) {
        if !self.has_timer {
            self.has_timer = self.parker.watches().tick_every(sweep_interval).is_ok();
        }
    }

    /// Does nothing: no other epoll contains this one.
    fn register_again(&mut self, _: Duration) {}

    fn has_timer(&self) -> bool {
        self.has_timer
    }

    fn has_ticked(&self) -> bool {
        self.parker.watches().has_ticked()
    }

    fn take_tick(&self) -> bool {
        self.parker.watches().take_tick()
    }

    fn poll_event(&self, _: &mut Context<'_>) -> Poll<()> {
        if self.parker.has_events.take() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[derive(Debug)]
struct ParkedAlarm<'a>(&'a Parker);

impl Alarm for ParkedAlarm<'_> {
    fn poll_expired(&mut self, _: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if deadline <= Instant::now() {
            return Poll::Ready(());
        }
        self.0.deadline.set(Some(deadline));
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::task::Wake;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::shared::Shared;
    use crate::shim::Role;
    use crate::stats::Counters;
    use crate::sys;

    const INTERVAL: Duration = Duration::from_secs(3_600);

    fn parker() -> Parker {
        let core = Core::new(Shared::new(
            Linux::new(true, false),
            Counters::default(),
            CancellationToken::new(),
            INTERVAL,
            INTERVAL,
            true,
            None,
        ));
        Parker::new(Arc::new(core)).unwrap()
    }

    #[test]
    fn an_interval_is_reported_once() {
        let parker = parker();
        let mut backend = Backend::Epoll(parker.watches());
        let mut events = ParkedEvents {
            parker: &parker,
            has_timer: false,
        };
        assert!(!events.has_timer() && !events.has_ticked() && !events.take_tick());
        events.retry_setup(Duration::from_millis(1));
        assert!(events.has_timer());
        while !events.has_ticked() {
            parker.park(&mut backend);
        }
        assert!(events.take_tick() && !events.take_tick());
    }

    #[test]
    #[allow(clippy::zombie_processes)] // The reaper waits for it.
    fn a_wake_up_hides_no_event() {
        let parker = parker();
        let mut backend = Backend::Epoll(parker.watches());
        let core = &parker.core;
        let child = Command::new("true").spawn().unwrap();
        core.shared.register(child.id(), Role::Owned).unwrap();
        parker.has_events.set(false);
        while !parker.has_events.get() {
            parker.park(&mut backend);
        }
        parker.wake_event.wake_by_ref();
        parker.park(&mut backend);
        let is_awake = sys::pidfd_has_exited(parker.wake_event.as_fd());
        assert!(!is_awake, "one wake-up ends one wait");
        assert!(parker.has_events.get());
        core.reap_ready_blocking();
        assert_eq!(core.shared.counters.snapshot(true).reaped_total, 1);
    }
}
