//! A process that got the pid of a dead shim is nobody's business.

mod common;

use std::time::Duration;

use common::recycled_pid::{exits_with_pid, sleeper_with_pid};
use common::{Fixture, as_pid, eventually, is_zombie, kill, sleeper, state_of};
use nix::errno::Errno;
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{CollectedBy, ReaperBuilder, ShimHandle};

in_both_modes!(
    a_living_stranger_with_the_pid_is_neither_signalled_nor_waited_on,
    a_dead_stranger_with_the_pid_keeps_its_exit_code_for_its_owner,
    the_pid_of_a_dead_shim_can_be_registered_for_its_next_process,
    a_child_that_was_waited_for_is_not_mistaken_for_its_successor,
);

/// A registered shim, dead and collected by its owner before the reaper has seen anything of it;
/// start times differ by more than a clock tick.
async fn shim_that_ended_unseen(fixture: &Fixture) -> ShimHandle {
    let mut child = sleeper().spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).await.unwrap();
    let started = std::time::Instant::now();
    eventually("another clock tick", || {
        started.elapsed() > Duration::from_millis(50)
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    handle
}

async fn a_living_stranger_with_the_pid_is_neither_signalled_nor_waited_on(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(100)));
    let old = shim_that_ended_unseen(&fixture).await;
    let Some(pid) = sleeper_with_pid(old.pid()) else {
        return;
    };
    for signal in [SIGTERM, SIGKILL] {
        let error = old.signal(signal).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32));
    }
    let exit = old.clone().await.unwrap();
    assert_eq!((exit.pid, exit.collected_by), (pid, CollectedBy::Owner));
    assert!(
        matches!(exit.signal(), None | Some(9)),
        "the old shim's own end: {exit:?}"
    );
    fixture.expect(0, 1, 0).await;
    fixture.sweeps(5).await;
    assert!(matches!(state_of(pid), Some('S' | 'R')), "untouched");
    assert_eq!(
        old.kill().unwrap_err().raw_os_error(),
        Some(Errno::ESRCH as i32)
    );

    kill(pid, SIGTERM);
    let ended = waitpid(as_pid(pid), None).unwrap();
    assert_eq!(ended, WaitStatus::Signaled(as_pid(pid), SIGTERM, false));
    fixture.expect(0, 1, 0).await;
}

async fn a_dead_stranger_with_the_pid_keeps_its_exit_code_for_its_owner(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(100)));
    let old = shim_that_ended_unseen(&fixture).await;
    let Some(pid) = exits_with_pid(old.pid(), 42) else {
        return;
    };
    eventually("the stranger is dead", || is_zombie(pid)).await;
    let exit = old.await.unwrap();
    assert_ne!(exit.code(), Some(42), "that is the stranger's");
    fixture.expect(0, 1, 0).await;
    fixture.sweeps(5).await;
    assert!(is_zombie(pid), "left to its owner");
    let ended = waitpid(as_pid(pid), None).unwrap();
    assert_eq!(ended, WaitStatus::Exited(as_pid(pid), 42));
}

async fn the_pid_of_a_dead_shim_can_be_registered_for_its_next_process(builder: ReaperBuilder) {
    // No sweep comes between, so that both entries exist side by side.
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(700)));
    let old = shim_that_ended_unseen(&fixture).await;
    let Some(pid) = sleeper_with_pid(old.pid()) else {
        return;
    };
    let new = fixture.reaper.register(pid).await.unwrap();
    let old = old.await.unwrap();
    assert!(matches!(old.signal(), None | Some(9)));
    assert!(new.is_running());
    assert_eq!(fixture.reaper.registered().await, [pid]);

    new.signal(SIGTERM).unwrap();
    assert_eq!(new.await.unwrap().signal(), Some(SIGTERM as i32));
    fixture.expect(1, 1, 0).await;
}

async fn a_child_that_was_waited_for_is_not_mistaken_for_its_successor(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut child = sleeper().spawn().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let Some(pid) = exits_with_pid(child.id(), 42) else {
        return;
    };
    eventually("the successor is dead", || is_zombie(pid)).await;

    let exit = fixture.reaper.register_child(child).unwrap().await.unwrap();
    assert_eq!(
        (exit.signal(), exit.collected_by),
        (Some(9), CollectedBy::Owner)
    );
    fixture.sweeps(5).await;
    let ended = waitpid(as_pid(pid), None).unwrap();
    assert_eq!(ended, WaitStatus::Exited(as_pid(pid), 42));
    fixture.expect(0, 1, 0).await;
}
