use std::future::{pending, poll_fn};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::core::{Core, NextDeadline};
use crate::effects::Effects;
use crate::kernel::Linux;
use crate::sweep::Slice;
use crate::sys;

/// The kernel's epoll, polled by the runtime that made this.
#[derive(Debug)]
pub(crate) struct Readiness<'a> {
    kernel: &'a Linux,
    /// `None` without pidfds, and for want of descriptors.
    epoll: Option<AsyncFd<BorrowedFd<'a>>>,
    ticks: bool,
}

impl<'a> Readiness<'a> {
    /// # Panics
    ///
    /// As tokio does outside a runtime, or in one without an I/O driver.
    pub(crate) fn new(kernel: &'a Linux, sweep_interval: Duration) -> Self {
        let mut readiness = Self {
            kernel,
            epoll: None,
            ticks: false,
        };
        readiness.complete(sweep_interval);
        readiness
    }

    /// Tries once more to get what there were no descriptors for.
    pub(crate) fn complete(&mut self, sweep_interval: Duration) {
        if self.epoll.is_none() {
            self.epoll = self.kernel.readiness_fd().and_then(|epoll| {
                sys::poll_readable(epoll)
                    .inspect_err(|error| tracing::debug!(%error, "no readiness for now"))
                    .ok()
            });
        }
        if self.epoll.is_some() && !self.ticks {
            self.ticks = self.kernel.tick_every(sweep_interval).is_ok();
        }
    }

    /// Whether it also tells when an interval sweep is due.
    pub(crate) fn ticks(&self) -> bool {
        self.ticks
    }

    /// Collects what the epoll reports, for as long as that is all there is to do. Returns the next
    /// deadline on a tick, or when it is earlier than `alarm`, and `None` when there is more to
    /// collect than a slice.
    ///
    /// The short way from a death to whoever awaits it: the worker's other events are polled after
    /// it.
    pub(crate) async fn collect_when_ready(
        &self,
        core: &Core<Linux>,
        effects: &mut Effects<'_, OwnedFd>,
        alarm: Option<Instant>,
    ) -> Option<NextDeadline> {
        let Some(epoll) = &self.epoll else {
            return pending().await;
        };
        poll_fn(|cx: &mut Context<'_>| {
            loop {
                match ready!(epoll.poll_read_ready(cx)) {
                    // Cleared before the epoll is asked, so that a report that comes in between is
                    // not missed.
                    Ok(mut guard) => guard.clear_ready(),
                    Err(error) => tracing::debug!(%error, "the runtime shuts down"),
                }
                let Some((Slice::Done, deadline)) = core.try_collect(effects) else {
                    return Poll::Ready(None);
                };
                let in_time =
                    deadline.is_none_or(|at| alarm.is_some_and(|alarm| alarm <= at.into()));
                if !in_time || self.kernel.has_ticked() {
                    return Poll::Ready(Some(deadline));
                }
            }
        })
        .await
    }
}
