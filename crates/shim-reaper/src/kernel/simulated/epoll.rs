use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::process::{Features, Process, ProcessState};
use crate::kernel::{MAX_READY_EVENTS, Until};

/// The epoll of pidfds, with a timer, and its registration with the epoll of tokio.
#[derive(Debug, Default)]
pub(super) struct Epoll {
    pub(super) is_open: bool,
    /// By descriptor.
    watches: BTreeMap<u64, Watch>,
    timer: Option<Timer>,
    /// Whether the timer has expired since the reaper took the tick.
    pub(super) ticked: bool,
    /// Whether tokio has an event that the worker has not cleared.
    event: bool,
    /// Whether tokio gets no events, because a forked child has removed the registration.
    unregistered: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Watch {
    token: u64,
    process: usize,
    until: Until,
    /// One shot: disarmed by its event.
    armed: bool,
    /// Whether tokio has an event for it.
    raised: bool,
    disturbance: Option<Disturbance>,
}

#[derive(Debug)]
struct Timer {
    next: Instant,
    interval: Duration,
    expired: bool,
}

/// What goes wrong with the next event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disturbance {
    Lost,
    /// Not before this time.
    Late(Instant),
    Twice,
    /// Although nothing has happened.
    Early,
}

impl Watch {
    fn is_due(&self, processes: &[Process], features: Features, now: Instant) -> bool {
        let state = processes[self.process].state;
        let due = match self.until {
            Until::Exited => state != ProcessState::Running,
            Until::Reaped => features.hangup && state.is_reaped(),
        };
        let reported = match self.disturbance {
            Some(Disturbance::Lost) => false,
            Some(Disturbance::Late(at)) => due && at <= now,
            Some(Disturbance::Early) => true,
            Some(Disturbance::Twice) | None => due,
        };
        self.armed && features.events && reported
    }
}

impl Epoll {
    pub(super) fn watch(&mut self, descriptor: u64, process: usize, token: u64, until: Until) {
        let watch = Watch {
            token,
            process,
            until,
            armed: true,
            raised: false,
            disturbance: None,
        };
        self.watches.insert(descriptor, watch);
    }

    pub(super) fn close(&mut self, descriptor: u64) {
        self.watches.remove(&descriptor);
    }

    pub(super) fn watch_count(&self) -> usize {
        self.watches.len()
    }

    /// Disturbs the next event of the watches of a process. Returns false if there are none.
    pub(super) fn disturb(&mut self, process: usize, disturbance: Disturbance) -> bool {
        let mut found = false;
        for watch in self.watches.values_mut() {
            if watch.process == process && watch.armed {
                watch.disturbance = Some(disturbance);
                watch.raised = false;
                found = true;
            }
        }
        found
    }

    /// Starts the timer, unless it runs.
    pub(super) fn tick_every(&mut self, now: Instant, interval: Duration) {
        self.timer.get_or_insert(Timer {
            next: now + interval,
            interval,
            expired: false,
        });
    }

    pub(super) fn has_timer(&self) -> bool {
        self.timer.is_some()
    }

    /// Reports new events to tokio.
    pub(super) fn raise(&mut self, processes: &[Process], features: Features, now: Instant) {
        let mut new = false;
        for watch in self.watches.values_mut() {
            if !watch.raised && watch.is_due(processes, features, now) {
                watch.raised = true;
                new = true;
            }
        }
        if let Some(timer) = &mut self.timer {
            while timer.next <= now {
                timer.next += timer.interval;
                timer.expired = true;
                new = true;
            }
        }
        if new {
            self.report_event();
        }
    }

    /// Reports an event to tokio, which may be none.
    pub(super) fn report_event(&mut self) {
        if !self.unregistered {
            self.event = true;
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Makes tokio lose all events from now on.
    pub(super) fn unregister(&mut self) {
        self.unregistered = true;
        self.event = false;
    }

    pub(super) fn is_unregistered(&self) -> bool {
        self.unregistered
    }

    /// Registers with tokio, which reports what is ready already.
    pub(super) fn register(&mut self) {
        self.unregistered = false;
        self.report_event();
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.event {
            self.event = false;
            return Poll::Ready(());
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes up to [`MAX_READY_EVENTS`] events, and returns how many there were.
    pub(super) fn take_events(
        &mut self,
        tokens: &mut VecDeque<u64>,
        processes: &[Process],
        features: Features,
        now: Instant,
    ) -> usize {
        let mut count = 0;
        if let Some(timer) = self.timer.as_mut().filter(|timer| timer.expired) {
            timer.expired = false;
            self.ticked = true;
            count += 1;
        }
        let due = self.watches.values_mut();
        for watch in due.filter(|watch| watch.is_due(processes, features, now)) {
            if count == MAX_READY_EVENTS {
                break;
            }
            tokens.push_back(watch.token);
            count += 1;
            watch.armed = watch.disturbance == Some(Disturbance::Twice);
            watch.disturbance = None;
            watch.raised = watch.armed;
        }
        count
    }

    /// Returns how many watches have an event.
    #[cfg(test)]
    pub(super) fn due_count(
        &self,
        processes: &[Process],
        features: Features,
        now: Instant,
    ) -> usize {
        let watches = self.watches.values();
        watches
            .filter(|watch| watch.is_due(processes, features, now))
            .count()
    }
}
