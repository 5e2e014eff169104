use std::mem;
use std::task::{Context, Poll};
use std::time::Duration;

use super::kernel::Simulated;
use crate::readiness::KernelEvents;

/// The events of the simulated epoll, as `Readiness` gets those of the kernel.
#[derive(Debug)]
pub(crate) struct SimulatedEvents<'a> {
    kernel: &'a Simulated,
    has_epoll: bool,
    has_timer: bool,
}

impl<'a> SimulatedEvents<'a> {
    pub(crate) fn new(kernel: &'a Simulated, sweep_interval: Duration) -> Self {
        let mut events = Self {
            kernel,
            has_epoll: false,
            has_timer: false,
        };
        events.retry_setup(sweep_interval);
        kernel.open_requests();
        events
    }
}

impl Drop for SimulatedEvents<'_> {
    fn drop(&mut self) {
        self.kernel.close_requests();
    }
}

impl KernelEvents for SimulatedEvents<'_> {
    fn retry_setup(&mut self, sweep_interval: Duration) {
        let mut table = self.kernel.table();
        if !self.has_epoll && table.features.pidfds && table.open_epoll().is_ok() {
            self.has_epoll = true;
            table.epoll.register();
        }
        if self.has_epoll && !self.has_timer {
            self.has_timer = table.epoll.has_timer() || table.take_descriptor();
            if self.has_timer {
                let now = table.now;
                table.epoll.tick_every(now, sweep_interval);
            }
        }
    }

    fn register_again(&mut self, sweep_interval: Duration) {
        self.has_epoll = false;
        self.retry_setup(sweep_interval);
    }

    fn has_timer(&self) -> bool {
        self.has_timer
    }

    fn has_ticked(&self) -> bool {
        self.kernel.table().epoll.ticked
    }

    fn take_tick(&self) -> bool {
        mem::take(&mut self.kernel.table().epoll.ticked)
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_epoll {
            return Poll::Pending;
        }
        self.kernel.leave();
        if self.kernel.take_news() {
            // The epoll may have events too, which the next call reports.
            return Poll::Ready(());
        }
        let poll = self.kernel.table().epoll.poll_event(cx);
        if poll.is_pending() {
            self.kernel.enter();
        }
        poll
    }
}
