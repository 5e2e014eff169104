use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::sys::{pidfd_await_exit, pidfd_open};

/// Returns `None` without io_uring.
fn ring(entries: u32) -> Option<Ring> {
    let ring = Ring::new(entries);
    if let Err(error) = &ring {
        assert!(std::env::var_os("CI").is_none(), "{error}");
        eprintln!("SKIPPED: io_uring is unavailable: {error}");
    }
    ring.ok()
}

/// Starts a child that exits with a code when its stdin is closed.
fn start(code: usize) -> (Child, OwnedFd) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("read line; exit {code}")]);
    let child = command.stdin(Stdio::piped()).spawn().unwrap();
    let pidfd = pidfd_open(child.id()).unwrap();
    (child, pidfd)
}

fn end(child: &mut Child, pidfd: &OwnedFd) {
    drop(child.stdin.take());
    assert!(pidfd_await_exit(pidfd.as_fd(), None));
}

/// Waits until this many requests have ended.
fn take_ended(ring: &mut Ring, count: usize) -> HashMap<RawFd, Option<ExitStatus>> {
    let mut ended = HashMap::new();
    let mut has_more = false;
    while ended.len() < count || has_more {
        ring.wait(None).unwrap();
        has_more = ring.take_completions(|completion| match completion {
            Completion::Ended(pidfd, status) => assert!(ended.insert(pidfd, status).is_none()),
            Completion::Readable => panic!("nothing is polled"),
        });
    }
    assert!(!ring.is_reaping());
    ended
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
#[allow(clippy::zombie_processes)] // The ring reaps them.
fn more_exits_than_a_ring_has_entries_are_all_reported() {
    // It has 4 entries for completions.
    let Some(mut ring) = ring(2) else { return };
    let mut children: Vec<_> = (0..30).map(start).collect();
    for (_, pidfd) in &children {
        ring.reap_on_exit(pidfd.as_raw_fd()).unwrap();
    }
    ring.wait(Some(Duration::ZERO)).unwrap();
    assert!(ring.is_reaping());
    for (child, pidfd) in &mut children {
        end(child, pidfd);
    }
    let ended = take_ended(&mut ring, children.len());
    for (code, (_, pidfd)) in children.iter().enumerate() {
        let status = ExitStatus::from_raw((code << 8) as i32);
        assert_eq!(ended[&pidfd.as_raw_fd()], Some(status));
    }
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn a_wait_that_times_out_succeeds() {
    let Some(mut ring) = ring(2) else { return };
    ring.wait(Some(Duration::from_millis(1))).unwrap();
    assert!(!ring.take_completions(|_| panic!("nothing was requested")));
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn cancelled_requests_leave_the_children_to_other_waits() {
    // It has 4 entries for completions.
    let Some(mut ring) = ring(2) else { return };
    let mut children: Vec<_> = (0..30).map(start).collect();
    for (_, pidfd) in &children {
        ring.reap_on_exit(pidfd.as_raw_fd()).unwrap();
    }
    ring.wait(Some(Duration::ZERO)).unwrap();
    // Their polls have ended, but the thread has not been in the kernel since.
    for (child, pidfd) in &mut children[..10] {
        end(child, pidfd);
    }
    ring.cancel_all().unwrap();
    for (child, pidfd) in &mut children[10..] {
        end(child, pidfd);
    }
    let (mut count, mut has_more) = (0, true);
    while has_more {
        ring.wait(Some(Duration::ZERO)).unwrap();
        has_more = ring.take_completions(|completion| {
            assert!(matches!(completion, Completion::Ended(_, None)));
            count += 1;
        });
    }
    assert!(count > 4, "the kernel has kept those that did not fit");
    let ended = take_ended(&mut ring, children.len() - count);
    assert!(ended.values().all(Option::is_none));
    for (code, (child, _)) in children.iter_mut().enumerate() {
        assert_eq!(child.wait().unwrap().code(), Some(code as i32));
    }
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn request_for_a_child_that_another_wait_has_reaped_ends_without_a_status() {
    let Some(mut ring) = ring(8) else { return };
    let (mut child, pidfd) = start(3);
    ring.reap_on_exit(pidfd.as_raw_fd()).unwrap();
    ring.wait(Some(Duration::ZERO)).unwrap();
    end(&mut child, &pidfd);
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(take_ended(&mut ring, 1)[&pidfd.as_raw_fd()], None);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls")]
fn poll_reports_a_readable_descriptor_once() {
    let Some(mut ring) = ring(8) else { return };
    let event = crate::wake_event::WakeEvent::new().unwrap();
    ring.poll(event.as_fd()).unwrap();
    ring.wait(Some(Duration::from_millis(1))).unwrap();
    let mut taken = Vec::new();
    ring.take_completions(|completion| taken.push(completion));
    assert!(taken.is_empty());
    std::task::Wake::wake_by_ref(&std::sync::Arc::new(event));
    ring.wait(None).unwrap();
    ring.take_completions(|completion| taken.push(completion));
    assert_eq!(taken, [Completion::Readable]);
}
