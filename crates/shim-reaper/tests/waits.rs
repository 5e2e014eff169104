//! The ways to wait for a shim: all return the same exit, and dropping one loses nothing.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use common::{DEADLINE, Fixture, exits_on_eof, exits_with, is_gone, sleeper};
use nix::errno::Errno;
use shim_reaper::{Pidfd, ReaperBuilder, ReaperClosed, ShimHandle, ShimReaper, Signal};

in_both_modes!(
    a_reference_can_be_awaited_many_times,
    a_mutable_reference_can_be_awaited_in_select,
    several_waits_of_one_handle_resolve_at_the_same_time,
    wait_timeout_returns_none_while_the_shim_runs,
    kill_returns_the_exit,
    killing_a_shim_that_has_ended_returns_its_exit,
    every_wait_fails_after_a_shutdown_that_left_the_shim_running,
    blocked_threads_get_the_exit,
    a_blocked_thread_keeps_no_descriptor,
    a_blocked_thread_learns_of_a_shutdown,
);

async fn a_reference_can_be_awaited_many_times(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(exits_with(3)).unwrap();
    for _ in 0..3 {
        assert_eq!((&handle).await.unwrap().code(), Some(3));
        assert_eq!(handle.wait().await.unwrap().code(), Some(3));
    }
    assert_eq!(handle.try_wait().unwrap().unwrap().code(), Some(3));
    assert_eq!(handle.wait_blocking().unwrap().code(), Some(3));
}

async fn a_mutable_reference_can_be_awaited_in_select(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut handle = fixture.reaper.spawn(exits_on_eof(4)).unwrap();
    let mut stdin = handle.take_stdin();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let exit = loop {
        tokio::select! {
            biased;
            exit = &mut handle => break exit,
            _ = tick.tick() => drop(stdin.take()),
        }
    };
    assert_eq!(exit.unwrap().code(), Some(4));
}

async fn several_waits_of_one_handle_resolve_at_the_same_time(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(exits_on_eof(5)).unwrap();
    let stdin = handle.take_stdin();
    let (first, second, third, ()) = tokio::join!(
        handle.wait(),
        handle.wait(),
        handle.wait_timeout(DEADLINE * 10),
        async { drop(stdin) }
    );
    for exit in [first.unwrap(), second.unwrap(), third.unwrap().unwrap()] {
        assert_eq!(exit.code(), Some(5));
    }
}

async fn wait_timeout_returns_none_while_the_shim_runs(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    let timeout = Duration::from_millis(5);
    assert_eq!(handle.wait_timeout(timeout).await, Ok(None));
    assert_eq!(handle.wait_timeout(Duration::ZERO).await, Ok(None));
    assert_eq!(handle.try_wait(), Ok(None));
    handle.start_kill().unwrap();
    let exit = handle.wait_timeout(Duration::MAX).await.unwrap();
    assert_eq!(exit.unwrap().signal(), Some(9));
}

async fn kill_returns_the_exit(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    assert_eq!(handle.kill().await.unwrap().signal(), Some(9));
    assert!(is_gone(handle.id()));
}

async fn killing_a_shim_that_has_ended_returns_its_exit(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(exits_with(6)).unwrap();
    handle.wait().await.unwrap();
    handle.start_kill().unwrap();
    assert_eq!(handle.kill().await.unwrap().code(), Some(6));
    let error = handle.send_signal(Signal::SIGKILL).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32));
}

async fn every_wait_fails_after_a_shutdown_that_left_the_shim_running(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut child = sleeper().spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).unwrap();
    fixture.reaper.shutdown().await;
    assert_eq!(handle.try_wait(), Err(ReaperClosed));
    assert_eq!(handle.wait().await, Err(ReaperClosed));
    assert_eq!(handle.wait_timeout(DEADLINE).await, Err(ReaperClosed));
    assert_eq!(handle.wait_blocking(), Err(ReaperClosed));
    let error = handle.kill().await.unwrap_err();
    assert!(error.to_string().contains("shut down"), "{error}");
    // The signal was sent nevertheless.
    child.wait().unwrap();
}

fn in_thread(handle: &ShimHandle) -> thread::JoinHandle<Result<Option<i32>, ReaperClosed>> {
    let handle = handle.clone();
    thread::spawn(move || handle.wait_blocking().map(|exit| exit.code()))
}

async fn blocked_threads_get_the_exit(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(exits_on_eof(7)).unwrap();
    let threads = [in_thread(&handle), in_thread(&handle)];
    drop(handle.take_stdin());
    for thread in threads {
        let exit = tokio::task::spawn_blocking(|| thread.join()).await;
        assert_eq!(exit.unwrap().unwrap(), Ok(Some(7)));
    }
    fixture.expect(1, 0, 0).await;
}

async fn a_blocked_thread_keeps_no_descriptor(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(exits_on_eof(5)).unwrap();
    let stdin = handle.take_stdin();
    let waiter = handle.clone();
    let thread = thread::spawn(move || waiter.wait_blocking().map(|_| waiter));
    // Most likely it blocks then. If it does not yet, the test proves nothing.
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(stdin);
    let waiter = thread.join().unwrap().unwrap();
    let errno = waiter.pidfd().unwrap_err().raw_os_error();
    assert_eq!(errno, Some(Errno::ESRCH as i32));
}

async fn a_blocked_thread_learns_of_a_shutdown(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    let thread = in_thread(&handle);
    let report = fixture.reaper.shutdown().await;
    assert_eq!(report.still_running, [handle.id()]);
    let exit = tokio::task::spawn_blocking(|| thread.join()).await;
    assert_eq!(exit.unwrap().unwrap(), Err(ReaperClosed));
    handle.start_kill().unwrap();
    nix::sys::wait::waitpid(common::as_pid(handle.id()), None).unwrap();
}

/// The worker is a task of the blocked thread, so that it cannot reap.
#[tokio::test(flavor = "current_thread")]
async fn blocking_the_thread_of_the_worker_reaps_there() {
    for pidfd in [true, false] {
        let reaper = ShimReaper::builder().pidfd(pidfd).start();
        for code in 0..20 {
            let handle = reaper.spawn(exits_with(code)).unwrap();
            assert_eq!(handle.wait_blocking().unwrap().code(), Some(code));
            assert!(is_gone(handle.id()));
        }
        assert_eq!(reaper.stats().reaped_total, 20);
    }
}

#[tokio::test]
async fn the_pidfd_of_a_handle_outlives_the_process() {
    let reaper = ShimReaper::start();
    let handle = reaper.spawn(sleeper()).unwrap();
    let pidfd = handle.pidfd().unwrap();
    assert_eq!(pidfd.as_raw_fd(), handle.pidfd().unwrap().as_raw_fd());
    let opened = Pidfd::open(handle.id()).unwrap();
    let inode = |fd: i32| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        inode(pidfd.as_raw_fd()).ino(),
        inode(opened.as_fd().as_raw_fd()).ino()
    );
    handle.kill().await.unwrap();
    assert!(handle.pidfd().is_ok());
    let error = handle.clone().pidfd().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32));
}

#[tokio::test]
async fn without_pidfds_a_handle_says_that_it_has_none() {
    let reaper = ShimReaper::builder().pidfd(false).start();
    let handle = reaper.spawn(sleeper()).unwrap();
    let error = handle.pidfd().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    assert!(error.to_string().contains(&handle.id().to_string()));
    handle.kill().await.unwrap();
}
