//! The reaper never touches a process that reuses the pid of a dead shim.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::time::Duration;

use common::recycled_pid::{exits_with_pid, sleeper_with_pid};
use common::{Fixture, as_pid, eventually, is_zombie, kill, sleeper, state_of};
use nix::errno::Errno;
use nix::sys::signal::Signal::SIGTERM;
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{ReapedBy, ReaperBuilder, ShimHandle, Signal};

in_both_modes!(
    a_live_process_with_a_reused_pid_is_neither_signalled_nor_reaped,
    a_zombie_with_a_reused_pid_keeps_its_exit_code_for_its_owner,
    the_pid_of_a_dead_shim_can_be_registered_again,
    a_child_whose_owner_waited_is_not_confused_with_its_successor,
);

/// Registers a shim that its owner then kills and reaps before the reaper notices. Waits first, so
/// that a process that reuses the pid has a different start time.
async fn unnoticed_exit(fixture: &Fixture) -> ShimHandle {
    let mut child = sleeper().spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).unwrap();
    let start = std::time::Instant::now();
    eventually("the next clock tick", || {
        start.elapsed() > Duration::from_millis(50)
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    handle
}

async fn a_live_process_with_a_reused_pid_is_neither_signalled_nor_reaped(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(100)));
    let old = unnoticed_exit(&fixture).await;
    let Some(pid) = sleeper_with_pid(old.id()) else {
        return;
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let error = old.send_signal(signal).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32));
    }
    let exit = old.clone().await.unwrap();
    assert_eq!((exit.pid, exit.reaped_by), (pid, ReapedBy::Owner));
    assert!(
        matches!(exit.signal(), None | Some(9)),
        "the exit of the old shim: {exit:?}"
    );
    fixture.expect(0, 1, 0).await;
    fixture.sweeps(5).await;
    assert!(
        matches!(state_of(pid), Some('S' | 'R')),
        "the new process still runs"
    );
    // It has ended, so there is nothing to kill.
    old.start_kill().unwrap();
    assert!(matches!(state_of(pid), Some('S' | 'R')));

    kill(pid, SIGTERM);
    let status = waitpid(as_pid(pid), None).unwrap();
    assert_eq!(status, WaitStatus::Signaled(as_pid(pid), SIGTERM, false));
    fixture.expect(0, 1, 0).await;
}

async fn a_zombie_with_a_reused_pid_keeps_its_exit_code_for_its_owner(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(100)));
    let old = unnoticed_exit(&fixture).await;
    let Some(pid) = exits_with_pid(old.id(), 42) else {
        return;
    };
    eventually("the new process exits", || is_zombie(pid)).await;
    let exit = old.await.unwrap();
    assert_ne!(exit.code(), Some(42), "42 belongs to the new process");
    fixture.expect(0, 1, 0).await;
    fixture.sweeps(5).await;
    assert!(is_zombie(pid), "the zombie stays for its owner");
    let status = waitpid(as_pid(pid), None).unwrap();
    assert_eq!(status, WaitStatus::Exited(as_pid(pid), 42));
}

async fn the_pid_of_a_dead_shim_can_be_registered_again(builder: ReaperBuilder) {
    // No sweep runs in between, so that both entries exist side by side.
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(700)));
    let old = unnoticed_exit(&fixture).await;
    let Some(pid) = sleeper_with_pid(old.id()) else {
        return;
    };
    let new = fixture.reaper.register(pid).unwrap();
    let old = old.await.unwrap();
    assert!(matches!(old.signal(), None | Some(9)));
    assert!(new.is_running());
    assert_eq!(fixture.reaper.registered(), [pid]);

    new.send_signal(Signal::SIGTERM).unwrap();
    assert_eq!(new.await.unwrap().signal(), Some(SIGTERM as i32));
    fixture.expect(1, 1, 0).await;
}

async fn a_child_whose_owner_waited_is_not_confused_with_its_successor(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut child = sleeper().spawn().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(pid) = exits_with_pid(child.id(), 42) else {
        return;
    };
    eventually("the successor exits", || is_zombie(pid)).await;

    let exit = fixture.reaper.register_child(child).unwrap().await.unwrap();
    assert_eq!((exit.signal(), exit.reaped_by), (Some(9), ReapedBy::Owner));
    fixture.sweeps(5).await;
    let status = waitpid(as_pid(pid), None).unwrap();
    assert_eq!(status, WaitStatus::Exited(as_pid(pid), 42));
    fixture.expect(0, 1, 0).await;
}
