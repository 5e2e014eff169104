use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{MAX_READY_EVENTS, Until};

/// The epoll that watches all pidfds. tokio polls it, or the dedicated thread blocks in it.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    epoll: OnceLock<Epoll>,
    timer: OnceLock<TimerFd>,
    /// Whether the timer has expired since [`take_tick`](Self::take_tick).
    ticked: AtomicBool,
    /// Whether the wake event was readable since [`take_woken`](Self::take_woken).
    woken: AtomicBool,
    /// The tokens of events that [`block`](Self::block) has read, or that were [reported](Self::report).
    fetched: Mutex<VecDeque<u64>>,
}

/// The epoll token of the timer; no shim has this id.
const TIMER_TOKEN: u64 = 0;

/// The epoll token of the event that wakes the dedicated thread; no shim has this id.
const WAKE_TOKEN: u64 = u64::MAX;

impl Watches {
    /// Returns the epoll descriptor, which is readable when a watch has an event.
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.epoll().map(|epoll| epoll.0.as_fd())
    }

    /// Returns the epoll. Creates it on first use, so that a shortage of descriptors at the start is
    /// not permanent.
    fn epoll(&self) -> io::Result<&Epoll> {
        if let Some(epoll) = self.epoll.get() {
            return Ok(epoll);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(self.epoll.get_or_init(|| epoll))
    }

    pub(super) fn add(&self, pidfd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        // One shot, because reaping the process would otherwise raise a second event.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, token);
        Ok(self.epoll()?.add(pidfd, event)?)
    }

    pub(super) fn add_again(
        &self,
        pidfd: BorrowedFd<'_>,
        token: u64,
        until: Until,
    ) -> io::Result<()> {
        let flags = match until {
            Until::Exited => EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT,
            // EPOLLHUP is always reported; a pidfd hangs up when its process is reaped.
            Until::Reaped => EpollFlags::EPOLLONESHOT,
        };
        let mut event = EpollEvent::new(flags, token);
        match self.epoll()?.modify(pidfd, &mut event) {
            // An io_uring has watched it since.
            Err(Errno::ENOENT) => Ok(self.epoll()?.add(pidfd, event)?),
            result => Ok(result?),
        }
    }

    pub(super) fn remove(&self, pidfd: BorrowedFd<'_>) {
        // Fails only if there is no watch.
        let _ = self.epoll().map(|epoll| epoll.delete(pidfd));
    }

    /// Adds a periodic timer. It is cheaper than a timer of the tokio runtime, which the worker
    /// would have to reset, and which would wake the tokio runtime, every time.
    pub(crate) fn tick_every(&self, interval: Duration) -> io::Result<()> {
        if self.timer.get().is_some() {
            return Ok(());
        }
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let expiration = Expiration::Interval(TimeSpec::from_duration(interval));
        timer.set(expiration, TimerSetTimeFlags::empty())?;
        self.epoll()?
            .add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER_TOKEN))?;
        self.timer.get_or_init(|| timer);
        Ok(())
    }

    pub(crate) fn has_ticked(&self) -> bool {
        self.ticked.load(Ordering::Relaxed)
    }

    pub(crate) fn take_tick(&self) -> bool {
        self.ticked.swap(false, Ordering::Relaxed)
    }

    /// Makes [`block`](Self::block) return while `event` is readable.
    pub(crate) fn add_wake_event(&self, event: BorrowedFd<'_>) -> io::Result<()> {
        let flags = EpollEvent::new(EpollFlags::EPOLLIN, WAKE_TOKEN);
        Ok(self.epoll()?.add(event, flags)?)
    }

    /// Needed although the event is closed afterwards: a forked child may have a copy.
    pub(crate) fn remove_wake_event(&self, event: BorrowedFd<'_>) {
        if let Some(epoll) = self.epoll.get() {
            // Fails only if it was not added.
            let _ = epoll.delete(event);
        }
    }

    pub(crate) fn take_woken(&self) -> bool {
        self.woken.swap(false, Ordering::Relaxed)
    }

    /// Blocks until a watch, the timer or the wake event has an event, or `timeout` has passed.
    /// Returns whether it was a watch or the timer. The next call of [`ready`](Self::ready) returns
    /// the events without a system call.
    pub(crate) fn block(&self, timeout: EpollTimeout) -> io::Result<bool> {
        let mut events = [EpollEvent::empty(); MAX_READY_EVENTS];
        let found = self.epoll()?.wait(&mut events, timeout)?;
        Ok(self.sort(&events[..found], &mut self.fetched()) > 0)
    }

    pub(super) fn ready(&self, tokens: &mut VecDeque<u64>) -> io::Result<usize> {
        {
            let mut fetched = self.fetched();
            let count = fetched.len().min(MAX_READY_EVENTS);
            if count > 0 {
                tokens.extend(fetched.drain(..count));
                return Ok(count);
            }
        }
        let Some(epoll) = self.epoll.get() else {
            return Ok(0);
        };
        let mut events = [EpollEvent::empty(); MAX_READY_EVENTS];
        let found = epoll.wait(&mut events, EpollTimeout::ZERO)?;
        Ok(self.sort(&events[..found], tokens))
    }

    /// Makes the next call of [`ready`](Self::ready) return these tokens.
    pub(crate) fn report(&self, tokens: VecDeque<u64>) {
        self.fetched().extend(tokens);
    }

    fn fetched(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the tokens of watches, and records the other events. Returns the number of events, without the wake
    /// event.
    fn sort(&self, events: &[EpollEvent], tokens: &mut VecDeque<u64>) -> usize {
        let mut count = events.len();
        for token in events.iter().map(EpollEvent::data) {
            match token {
                TIMER_TOKEN => {
                    // Reading a periodic timer clears its expiration: timerfd_create(2).
                    if let Some(timer) = self.timer.get() {
                        let _ = timer.wait();
                    }
                    self.ticked.store(true, Ordering::Relaxed);
                }
                // It stays readable until its thread runs.
                WAKE_TOKEN => {
                    self.woken.store(true, Ordering::Relaxed);
                    count -= 1;
                }
                token => tokens.push_back(token),
            }
        }
        count
    }
}
