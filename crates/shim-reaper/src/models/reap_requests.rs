//! A process that the kernel reaps for a request, and that a sweep, a foreign wait and a shutdown see at
//! the same time.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use loom::model;
use loom::sync::Mutex;
use loom::thread;

use crate::kernel::ReapRequests;
use crate::sys::Completion;
use crate::wake_event::WakeEvent;

/// A zombie, a request for it, and the thread that has the ring.
struct Model {
    requests: ReapRequests,
    pidfd: OwnedFd,
    /// Whether it can be reaped.
    is_zombie: Mutex<bool>,
}

impl Model {
    fn new() -> Arc<Self> {
        let requests = ReapRequests::default();
        requests.open(&Arc::new(WakeEvent::new().unwrap()));
        let pidfd = OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(requests.add(pidfd.as_fd(), 7));
        Arc::new(Self {
            requests,
            pidfd,
            is_zombie: Mutex::new(true),
        })
    }

    /// Does what a wait in any thread does. Returns whether it has reaped the process.
    fn wait(&self) -> bool {
        std::mem::take(&mut *self.is_zombie.lock().unwrap())
    }

    /// Enters the kernel once, as the dedicated thread does. Returns whether the kernel has reaped.
    fn block(&self) -> bool {
        let Some(pidfds) = self.requests.enter() else {
            return false;
        };
        let reaped = !pidfds.is_empty() && self.wait();
        let status = reaped.then(status);
        let ended = pidfds.iter().map(|pidfd| Completion::Ended(*pidfd, status));
        self.requests
            .leave(&ended.collect::<Vec<_>>(), &mut VecDeque::new());
        reaped
    }

    fn status(&self) -> Option<ExitStatus> {
        self.requests.status_of_reaped(self.pidfd.as_fd(), false)
    }
}

fn status() -> ExitStatus {
    ExitStatus::from_raw(3 << 8)
}

#[test]
fn sweep_or_kernel_has_the_status() {
    model(|| {
        let sweep = Model::new();
        let ring = Arc::clone(&sweep);
        let thread = thread::spawn(move || ring.block());
        let swept = sweep.wait();
        let found = if swept { None } else { sweep.status() };
        let reaped = thread.join().unwrap();
        assert_ne!(swept, reaped);
        assert_eq!(found, reaped.then(status));
    });
}

#[test]
fn foreign_wait_is_told_from_the_wait_of_the_kernel() {
    model(|| {
        let sweep = Model::new();
        let (ring, other) = (Arc::clone(&sweep), Arc::clone(&sweep));
        let ring = thread::spawn(move || ring.block());
        let other = thread::spawn(move || other.wait());
        let swept = sweep.wait();
        let found = if swept { None } else { sweep.status() };
        let (reaped, stolen) = (ring.join().unwrap(), other.join().unwrap());
        assert_eq!(
            [swept, reaped, stolen].iter().filter(|one| **one).count(),
            1
        );
        assert_eq!(found, reaped.then(status));
    });
}

#[test]
fn kernel_reaps_nothing_after_a_stop() {
    model(|| {
        let shutdown = Model::new();
        let ring = Arc::clone(&shutdown);
        let thread = thread::spawn(move || ring.block() || ring.block());
        shutdown.requests.stop();
        let left = *shutdown.is_zombie.lock().unwrap();
        let found = shutdown.status();
        let reaped = thread.join().unwrap();
        assert_eq!(left, *shutdown.is_zombie.lock().unwrap());
        assert_eq!(found, reaped.then(status));
    });
}
