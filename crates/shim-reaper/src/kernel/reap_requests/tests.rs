use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::{pidfd_await_exit, pidfd_has_exited};

fn open() -> (ReapRequests, Arc<WakeEvent>) {
    let requests = ReapRequests::default();
    let wake_event = Arc::new(WakeEvent::new().unwrap());
    requests.open(&wake_event);
    (requests, wake_event)
}

/// Returns a descriptor in place of a pidfd, which nothing waits for.
fn descriptor() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn is_open(fd: RawFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|path| path.ends_with("null"))
}

fn leave(requests: &ReapRequests, completions: &[Completion]) -> VecDeque<u64> {
    let mut tokens = VecDeque::new();
    requests.leave(completions, &mut tokens);
    tokens
}

/// Long after any step on a busy machine.
fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn status_is_known_until_a_sweep_takes_it() {
    let (requests, _wake_event) = open();
    let pidfd = descriptor();
    let status = ExitStatus::from_raw(3 << 8);
    assert!(requests.add(pidfd.as_fd(), 7));
    assert_eq!(requests.enter().unwrap(), [pidfd.as_raw_fd()]);
    let ended = Completion::Ended(pidfd.as_raw_fd(), Some(status));
    assert_eq!(leave(&requests, &[ended]), [7]);
    assert_eq!(requests.status(pidfd.as_fd(), true), Some(status));
    assert_eq!(requests.status(pidfd.as_fd(), false), Some(status));
    assert_eq!(requests.status(pidfd.as_fd(), false), None);
    assert!(requests.release(pidfd).is_some());
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn pidfd_stays_open_until_its_request_has_ended() {
    let (requests, _wake_event) = open();
    let pidfd = descriptor();
    let number = pidfd.as_raw_fd();
    requests.add(pidfd.as_fd(), 7);
    requests.enter();
    leave(&requests, &[]);
    assert!(requests.release(pidfd).is_none());
    assert!(is_open(number));
    requests.enter();
    let tokens = leave(&requests, &[Completion::Ended(number, None)]);
    assert!(tokens.is_empty(), "its shim is finished");
    assert!(!is_open(number));
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn request_of_a_pidfd_that_is_released_before_it_starts_is_dropped() {
    let (requests, _wake_event) = open();
    let pidfd = descriptor();
    requests.add(pidfd.as_fd(), 7);
    assert!(requests.release(pidfd).is_some());
    assert!(requests.enter().unwrap().is_empty());
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn new_request_wakes_the_thread_in_the_kernel() {
    let (requests, wake_event) = open();
    let pidfds = [descriptor(), descriptor()];
    requests.add(pidfds[0].as_fd(), 7);
    assert!(!pidfd_has_exited(wake_event.as_fd()), "it enters later");
    requests.enter();
    requests.add(pidfds[1].as_fd(), 8);
    assert!(pidfd_has_exited(wake_event.as_fd()));
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn stop_waits_until_the_thread_has_left_the_kernel() {
    let (requests, wake_event) = open();
    requests.enter();
    let (done, is_done) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            requests.stop();
            done.send(()).unwrap();
        });
        assert!(pidfd_await_exit(wake_event.as_fd(), Some(deadline())));
        assert!(is_done.try_recv().is_err());
        leave(&requests, &[]);
        is_done.recv().unwrap();
    });
    assert!(requests.enter().is_none());
    assert!(!requests.add(descriptor().as_fd(), 7));
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn status_that_the_kernel_is_taking_is_awaited() {
    for is_cancelling in [false, true] {
        let (requests, wake_event) = open();
        let pidfd = descriptor();
        let status = ExitStatus::from_raw(3 << 8);
        requests.add(pidfd.as_fd(), 7);
        requests.enter();
        if is_cancelling {
            leave(&requests, &[]);
            requests.enter_to_cancel();
        }
        let taken = thread::scope(|scope| {
            let take = scope.spawn(|| requests.status_of_reaped(pidfd.as_fd(), false));
            assert!(pidfd_await_exit(wake_event.as_fd(), Some(deadline())));
            assert!(!take.is_finished());
            let ended = Completion::Ended(pidfd.as_raw_fd(), Some(status));
            assert_eq!(leave(&requests, &[ended]), [7]);
            take.join().unwrap()
        });
        assert_eq!(taken, Some(status));
    }
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn requests_that_the_kernel_has_not_ended_are_reported_when_the_ring_is_closed() {
    let (requests, _wake_event) = open();
    let pidfds = [descriptor(), descriptor()];
    requests.add(pidfds[0].as_fd(), 7);
    requests.enter();
    leave(&requests, &[]);
    requests.add(pidfds[1].as_fd(), 8);
    let mut tokens = VecDeque::new();
    requests.close(&mut tokens);
    tokens.make_contiguous().sort_unstable();
    assert_eq!(tokens, [7, 8]);
    assert!(!requests.add(descriptor().as_fd(), 9));
}
