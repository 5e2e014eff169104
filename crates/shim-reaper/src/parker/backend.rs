use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::EpollTimeout;

use crate::kernel::{Linux, ReapRequests, Watches};
use crate::sys::{Completion, Ring};
use crate::wake_event::WakeEvent;

/// How many requests one system call starts: two for each shim.
const RING_ENTRIES: u32 = 128;

/// How long, and how often, the thread waits for the end of requests that it has cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);
const MAX_CANCEL_INTERVALS: u32 = 20;

/// How the dedicated thread blocks.
#[derive(Debug)]
pub(crate) enum Backend<'a> {
    /// In the epoll of pidfds.
    Epoll(&'a Watches),
    /// In an io_uring, which reaps children as they exit and polls that epoll.
    IoUring(Box<IoUring<'a>>),
}

#[derive(Debug)]
pub(crate) struct IoUring<'a> {
    ring: Ring,
    requests: &'a ReapRequests,
    watches: &'a Watches,
    /// Whether the ring polls the epoll.
    polls_epoll: bool,
    /// What the kernel has reported. Empty between two calls, which share its allocation.
    completions: Vec<Completion>,
}

impl<'a> Backend<'a> {
    /// Selects io_uring if the embedder wants it and the kernel allows it.
    pub(crate) fn new(kernel: &'a Linux, wake_event: &Arc<WakeEvent>) -> Self {
        let watches = kernel.watches();
        let Some(requests) = kernel.reap_requests() else {
            return Self::Epoll(watches);
        };
        match Ring::new(RING_ENTRIES) {
            Ok(ring) => {
                requests.open(wake_event);
                Self::IoUring(Box::new(IoUring {
                    ring,
                    requests,
                    watches,
                    polls_epoll: false,
                    completions: Vec::new(),
                }))
            }
            Err(error) => {
                tracing::warn!(%error, "io_uring is unavailable; the reaper uses its epoll");
                Self::Epoll(watches)
            }
        }
    }

    /// Blocks until the kernel has an event, or `timeout` has passed. Returns whether it has one other than
    /// the wake event.
    pub(crate) fn block(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        match self {
            Self::Epoll(watches) => {
                let timeout = timeout.map_or(EpollTimeout::NONE, |timeout| {
                    // Rounded up, so that the thread does not wake before the deadline.
                    let timeout = timeout + Duration::from_nanos(999_999);
                    EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX)
                });
                watches.block(timeout)
            }
            Self::IoUring(io_uring) => match io_uring.block(timeout) {
                Ok(Some(found)) => Ok(found),
                result => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "io_uring failed; the reaper uses its epoll");
                    }
                    // Ends all requests. The sweep watches their shims again.
                    *self = Self::Epoll(io_uring.watches);
                    Ok(true)
                }
            },
        }
    }
}

impl IoUring<'_> {
    /// Does what [`Backend::block`] does. Returns `None` after a shutdown.
    fn block(&mut self, timeout: Option<Duration>) -> io::Result<Option<bool>> {
        let Some(pidfds) = self.requests.enter() else {
            return Ok(None);
        };
        let result = self.wait(&pidfds, timeout);
        let ended = self.leave();
        result?;
        if !self.polls_epoll {
            // Its events are not in the ring.
            let found = self.watches.block(EpollTimeout::ZERO)?;
            return Ok(Some(found || ended));
        }
        Ok(Some(ended))
    }

    fn wait(&mut self, pidfds: &[i32], timeout: Option<Duration>) -> io::Result<()> {
        for pidfd in pidfds {
            self.ring.reap_on_exit(*pidfd)?;
        }
        if !self.polls_epoll {
            self.ring.poll(self.watches.fd()?)?;
            self.polls_epoll = true;
        }
        self.ring.wait(timeout)?;
        while self.take_completions() {
            self.ring.wait(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    fn take_completions(&mut self) -> bool {
        let (completions, polls_epoll) = (&mut self.completions, &mut self.polls_epoll);
        self.ring.take_completions(|completion| {
            if completion == Completion::Readable {
                *polls_epoll = false;
            }
            completions.push(completion);
        })
    }

    /// Publishes what the kernel has reaped. Returns whether a request has ended.
    fn leave(&mut self) -> bool {
        let mut tokens = VecDeque::new();
        self.requests.leave(&self.completions, &mut tokens);
        self.completions.clear();
        let ended = !tokens.is_empty();
        self.watches.report(tokens);
        ended
    }
}

impl Drop for IoUring<'_> {
    /// Ends all requests, so that the kernel reaps nothing that the reaper does not report.
    fn drop(&mut self) {
        self.requests.enter_to_cancel();
        let mut result = self.ring.cancel_all();
        for _ in 0..MAX_CANCEL_INTERVALS {
            self.take_completions();
            if result.is_err() || !self.ring.is_reaping() {
                break;
            }
            result = self.ring.wait(Some(CANCEL_INTERVAL));
        }
        self.leave();
        let mut tokens = VecDeque::new();
        self.requests.close(&mut tokens);
        self.watches.report(tokens);
        if let Err(error) = result {
            tracing::warn!(%error, "cannot cancel the requests of io_uring");
        }
    }
}
