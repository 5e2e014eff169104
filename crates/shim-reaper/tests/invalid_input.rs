//! Invalid arguments yield an error or a resolved handle, and leave nothing behind.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::process::Command;
use std::time::Duration;

use common::own_process::{block_on, in_own_process};
use common::{Fixture, exits_with, is_gone};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use shim_reaper::{ReaperBuilder, ReaperClosed, RegisterErrorKind, ShimReaper};
use tokio_util::sync::CancellationToken;

in_both_modes!(
    pids_that_no_child_can_have_are_rejected,
    extreme_durations_are_clamped,
    a_reaper_started_with_a_cancelled_token_rejects_every_call,
    registering_a_live_process_of_another_parent_resolves_as_vanished,
);

async fn pids_that_no_child_can_have_are_rejected(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    for (pid, kind) in [
        (0, RegisterErrorKind::Zero),
        (std::process::id(), RegisterErrorKind::ThisProcess),
        (i32::MAX as u32 + 1, RegisterErrorKind::OutOfRange),
        (u32::MAX, RegisterErrorKind::OutOfRange),
    ] {
        for error in [
            fixture.reaper.register(pid).unwrap_err(),
            fixture.reaper.attach(pid).unwrap_err(),
        ] {
            assert_eq!((error.pid(), error.kind()), (pid, kind));
            assert!(
                error.to_string().contains(&format!("pid {pid}: ")),
                "{error}"
            );
            assert!(error.into_child().is_none());
        }
    }
    assert!(fixture.reaper.registered().is_empty());
    fixture.expect(0, 0, 0).await;
}

async fn extreme_durations_are_clamped(builder: ReaperBuilder) {
    for (interval, grace) in [
        (Duration::ZERO, Duration::ZERO),
        (Duration::ZERO, Duration::MAX),
        (Duration::MAX, Duration::ZERO),
        (Duration::MAX, Duration::MAX),
    ] {
        let fixture = Fixture::new(builder.clone().sweep_interval(interval).owner_grace(grace));
        if interval.is_zero() {
            fixture.sweeps(5).await;
        }
        let mut child = exits_with(3).spawn().unwrap();
        let handle = fixture.reaper.register(child.id()).unwrap();
        if grace == Duration::MAX {
            assert_eq!(child.wait().unwrap().code(), Some(3));
        } else {
            common::eventually("the child exits", || {
                common::is_zombie(child.id()) || is_gone(child.id())
            })
            .await;
        }
        fixture.reaper.shutdown().await;
        let exit = handle.await.unwrap();
        assert!(matches!(exit.code(), None | Some(3)));
        assert!(is_gone(child.id()));
    }
}

async fn a_reaper_started_with_a_cancelled_token_rejects_every_call(builder: ReaperBuilder) {
    let token = CancellationToken::new();
    token.cancel();
    let fixture = Fixture::new(builder.shutdown_token(token));
    assert!(!fixture.reaper.worker_alive());
    let child = exits_with(3).spawn().unwrap();
    let error = fixture.reaper.register(child.id()).unwrap_err();
    assert_eq!(error.kind(), RegisterErrorKind::Closed);
    let error = fixture.reaper.register_child(child).unwrap_err();
    assert_eq!(error.into_child().unwrap().wait().unwrap().code(), Some(3));
    let error = fixture.reaper.spawn(exits_with(3)).unwrap_err();
    assert!(error.get_ref().unwrap().is::<ReaperClosed>());
    assert_eq!(fixture.reaper.shutdown().await.drained, 0);
    fixture.expect(0, 0, 0).await;
}

async fn registering_a_live_process_of_another_parent_resolves_as_vanished(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let handle = fixture.reaper.register(1).unwrap();
    let exit = handle.await.unwrap();
    assert!(exit.status.is_none() && exit.rusage.is_none());
    assert!(!exit.success());
    fixture.expect(0, 1, 0).await;
}

/// The next sweep is 11 days away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_cannot_be_waited_for_resolves_without_a_sweep() {
    let never = Duration::from_secs(1_000_000);
    let fixture = Fixture::new(ShimReaper::builder().sweep_interval(never));
    common::eventually("the first sweep completes", || {
        fixture.reaper.stats().sweeps_completed == 1
    })
    .await;
    let nonexistent = u32::try_from(i32::MAX).unwrap();
    for (pid, attach) in [(nonexistent, false), (nonexistent, true), (1, false)] {
        let handle = if attach {
            fixture.reaper.attach(pid).unwrap()
        } else {
            fixture.reaper.register(pid).unwrap()
        };
        assert!(handle.await.unwrap().status.is_none());
    }
    fixture.expect(0, 3, 0).await;
}

#[test]
fn spawning_a_missing_or_unexecutable_program_leaves_no_child() {
    in_own_process(
        "spawning_a_missing_or_unexecutable_program_leaves_no_child",
        || {
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder());
                let error = fixture
                    .reaper
                    .spawn(Command::new("/nonexistent/shim"))
                    .unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
                let error = fixture
                    .reaper
                    .spawn(Command::new("/etc/passwd"))
                    .unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
                assert_eq!(
                    waitpid(None, Some(WaitPidFlag::WNOHANG)),
                    Err(Errno::ECHILD)
                );
                fixture.expect(0, 0, 0).await;
            });
        },
    );
}

#[test]
fn start_panics_outside_a_tokio_runtime_and_start_dedicated_does_not() {
    let panic = std::panic::catch_unwind(ShimReaper::start).unwrap_err();
    let message = panic.downcast_ref::<String>().map_or_else(
        || (*panic.downcast_ref::<&str>().unwrap()).to_owned(),
        Clone::clone,
    );
    assert!(message.contains("there is no reactor running"), "{message}");
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    assert_eq!(reaper.shutdown_sync().drained, 0);
}
