use std::future::{Future, poll_fn};
use std::mem;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::process;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Sleep, sleep};

use crate::core::{Core, NextDeadline};
use crate::kernel::{Linux, ProcessTable};
use crate::outbox::Outbox;
use crate::sweep::Progress;
use crate::sys;

/// Where the worker runs, which determines how it waits.
pub(crate) trait Host {
    fn kernel_events(&self) -> impl KernelEvents;

    fn alarm(&self) -> impl Alarm;
}

/// A timer that the worker sets again each time it waits.
pub(crate) trait Alarm {
    /// Returns once `deadline` has passed. Another deadline replaces that of the call before.
    fn poll_expired(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()>;
}

/// The events of the kernel that wake the worker.
pub(crate) trait KernelEvents {
    /// Sets up the events and the timer, unless an earlier call has.
    fn retry_setup(&mut self, sweep_interval: Duration);

    /// Sets up the events again, in case they were lost.
    fn register_again(&mut self, sweep_interval: Duration);

    /// Returns whether an event also reports when an interval sweep is due.
    fn has_timer(&self) -> bool;

    /// Returns whether the timer has expired since [`take_tick`](Self::take_tick).
    fn has_ticked(&self) -> bool;

    fn take_tick(&self) -> bool;

    /// Returns once an event may be ready, and clears that, so that the next call reports later
    /// events only.
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The tokio runtime that runs the worker.
#[derive(Debug)]
pub(crate) struct TokioHost<'a> {
    pub(crate) kernel: &'a Linux,
    pub(crate) sweep_interval: Duration,
}

impl Host for TokioHost<'_> {
    fn kernel_events(&self) -> impl KernelEvents {
        Readiness::new(self.kernel, self.sweep_interval)
    }

    fn alarm(&self) -> impl Alarm {
        TokioAlarm::new()
    }
}

/// A timer of the current tokio runtime.
#[derive(Debug)]
pub(crate) struct TokioAlarm(Pin<Box<Sleep>>);

impl TokioAlarm {
    /// # Panics
    ///
    /// Panics outside a tokio runtime, and in one without a time driver.
    pub(crate) fn new() -> Self {
        Self(Box::pin(sleep(Duration::ZERO)))
    }
}

impl Alarm for TokioAlarm {
    fn poll_expired(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if self.0.deadline() != deadline {
            self.0.as_mut().reset(deadline);
        }
        self.0.as_mut().poll(cx)
    }
}

/// The kernel's epoll, registered with the tokio runtime of the worker.
#[derive(Debug)]
struct Readiness<'a> {
    kernel: &'a Linux,
    /// `None` without pidfds, and while descriptors are exhausted.
    epoll: Option<AsyncFd<BorrowedFd<'a>>>,
    /// Whether the epoll includes the timer of the interval sweep.
    has_timer: bool,
    /// The process that registered the epoll.
    owner_pid: u32,
}

impl<'a> Readiness<'a> {
    /// # Panics
    ///
    /// Panics outside a tokio runtime, and in one without an I/O driver.
    fn new(kernel: &'a Linux, sweep_interval: Duration) -> Self {
        let mut readiness = Self {
            kernel,
            epoll: None,
            has_timer: false,
            owner_pid: process::id(),
        };
        readiness.retry_setup(sweep_interval);
        readiness
    }
}

impl Drop for Readiness<'_> {
    /// A forked child shares the epoll of tokio, from which dropping the copy would remove that of the
    /// reaper.
    fn drop(&mut self) {
        if process::id() != self.owner_pid {
            mem::forget(self.epoll.take());
        }
    }
}

impl KernelEvents for Readiness<'_> {
    fn retry_setup(&mut self, sweep_interval: Duration) {
        if self.epoll.is_none() {
            self.epoll = self.kernel.readiness_fd().and_then(|epoll| {
                sys::poll_readable(epoll)
                    .inspect_err(|error| tracing::debug!(%error, "cannot poll for process events; the next sweep retries"))
                    .ok()
            });
        }
        if self.epoll.is_some() && !self.has_timer {
            self.has_timer = self.kernel.watches().tick_every(sweep_interval).is_ok();
        }
    }

    fn register_again(&mut self, sweep_interval: Duration) {
        // Dropped first, because an epoll registers a descriptor only once.
        self.epoll = None;
        self.retry_setup(sweep_interval);
    }

    fn has_timer(&self) -> bool {
        self.has_timer
    }

    fn has_ticked(&self) -> bool {
        self.kernel.watches().has_ticked()
    }

    fn take_tick(&self) -> bool {
        self.kernel.watches().take_tick()
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(epoll) = &self.epoll else {
            return Poll::Pending;
        };
        match ready!(epoll.poll_read_ready(cx)) {
            // Cleared before the epoll is read, so that no event in between is missed.
            Ok(mut guard) => guard.clear_ready(),
            Err(error) => tracing::debug!(%error, "the tokio runtime is shutting down"),
        }
        Poll::Ready(())
    }
}

/// Processes the events of the kernel until the worker has something else to do. Returns the next
/// deadline when the timer has expired or the deadline is earlier than `wake_at`, and `None` when a
/// slice left more events.
///
/// This is the fast path from an exit to the task that awaits it. The worker polls its other events
/// after this.
pub(crate) async fn reap_when_ready<K: ProcessTable>(
    events: &impl KernelEvents,
    core: &Core<K>,
    outbox: &mut Outbox<K::Pidfd>,
    wake_at: Instant,
) -> Option<NextDeadline> {
    poll_fn(|cx: &mut Context<'_>| {
        loop {
            ready!(events.poll_event(cx));
            let Some((Progress::Done, deadline)) = core.try_reap_ready(outbox) else {
                return Poll::Ready(None);
            };
            let in_time = deadline.is_none_or(|at| wake_at <= at.into());
            if !in_time || events.has_ticked() {
                return Poll::Ready(Some(deadline));
            }
        }
    })
    .await
}
