//! `register_child` takes children of `pidfd-spawn`, std and tokio, and returns those that it refuses.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use common::{Fixture, eventually, is_gone, is_zombie, state_of};
use nix::sys::signal::Signal::SIGKILL;
use shim_reaper::{
    ChildProcess, ReapedBy, ReaperBuilder, RegisterErrorKind, ShimHandle, ShimReaper,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Reads a line, writes it back, and exits with 7.
const SCRIPT: &str = "read line; echo hello $line; exit 7";

fn native_child(script: &str) -> pidfd_spawn::Child {
    let mut command = pidfd_spawn::Command::new("sh");
    command.args(["-c", script]);
    command.stdin(pidfd_spawn::Stdio::piped());
    command.stdout(pidfd_spawn::Stdio::piped());
    command.spawn().unwrap()
}

fn std_child(script: &str) -> std::process::Child {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn tokio_child(script: &str) -> tokio::process::Child {
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", script]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Writes to the shim, reads from it, and awaits its exit.
async fn greet(handle: ShimHandle) {
    let mut stdin = handle.take_stdin().unwrap();
    stdin.write_all(b"world\n").await.unwrap();
    let mut output = String::new();
    let mut stdout = handle.take_stdout().unwrap();
    stdout.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "hello world\n");
    let exit = handle.wait().await.unwrap();
    assert_eq!(exit.code(), Some(7));
    assert_eq!(exit.reaped_by, ReapedBy::Reaper);
    assert!(exit.rusage.is_some());
    assert!(is_gone(handle.id()));
}

in_both_modes! {
    live_children_of_every_type_are_reaped_and_keep_their_pipes,
    dead_children_of_every_type_are_reaped,
    children_whose_pid_is_registered_are_taken_over,
}

async fn live_children_of_every_type_are_reaped_and_keep_their_pipes(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let reaper = &fixture.reaper;
    greet(reaper.register_child(native_child(SCRIPT)).unwrap()).await;
    greet(reaper.register_child(std_child(SCRIPT)).unwrap()).await;
    greet(reaper.register_child(tokio_child(SCRIPT)).unwrap()).await;
    fixture.expect(3, 0, 0).await;
}

async fn dead_children_of_every_type_are_reaped(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let (native, std, tokio) = (
        native_child("exit 5"),
        std_child("exit 5"),
        tokio_child("exit 5"),
    );
    for pid in [native.id(), std.id(), tokio.id().unwrap()] {
        eventually("it is a zombie", || is_zombie(pid)).await;
    }
    for handle in [
        fixture.reaper.register_child(native).unwrap(),
        fixture.reaper.register_child(std).unwrap(),
        fixture.reaper.register_child(tokio).unwrap(),
    ] {
        let exit = handle.try_wait().unwrap().unwrap();
        assert_eq!(exit.code(), Some(5));
        assert_eq!(exit.reaped_by, ReapedBy::Reaper);
        assert!(is_gone(handle.id()));
    }
    fixture.expect(3, 0, 0).await;
}

async fn children_whose_pid_is_registered_are_taken_over(builder: ReaperBuilder) {
    async fn check<C: ChildProcess>(fixture: &Fixture, pid: u32, child: C) {
        let by_pid = fixture.reaper.register(pid).unwrap();
        let handle = fixture.reaper.register_child(child).unwrap();
        common::kill(pid, SIGKILL);
        for handle in [by_pid, handle] {
            let exit = handle.wait().await.unwrap();
            assert_eq!(exit.signal(), Some(SIGKILL as i32));
            assert_eq!(exit.reaped_by, ReapedBy::Reaper);
        }
    }
    let builder = builder.owner_grace(Duration::from_secs(1000));
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let child = native_child(SCRIPT);
    check(&fixture, child.id(), child).await;
    let child = std_child(SCRIPT);
    check(&fixture, child.id(), child).await;
    let child = tokio_child(SCRIPT);
    check(&fixture, child.id().unwrap(), child).await;
    fixture.expect(3, 0, 0).await;
}

#[tokio::test]
async fn refused_children_of_every_type_come_back_complete() {
    let reaper = ShimReaper::start();
    reaper.shutdown().await;

    let error = reaper.register_child(native_child(SCRIPT)).unwrap_err();
    assert_eq!(error.kind(), RegisterErrorKind::Closed);
    let mut child: pidfd_spawn::Child = error.into_child().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    let mut output = String::new();
    stdout.read_to_string(&mut output).unwrap();
    assert_eq!(output, "hello\n");

    let error = reaper.register_child(std_child(SCRIPT)).unwrap_err();
    let child: std::process::Child = error.into_child().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(7), &b"hello\n"[..])
    );

    let error = reaper.register_child(tokio_child(SCRIPT)).unwrap_err();
    let child: tokio::process::Child = error.into_child().unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(7), &b"hello\n"[..])
    );
}

#[tokio::test]
async fn children_that_were_waited_for_are_published_or_refused() {
    let fixture = Fixture::new(ShimReaper::builder());
    let mut native = native_child("exit 5");
    native.wait().unwrap();
    let mut std = std_child("exit 5");
    std.wait().unwrap();
    for handle in [
        fixture.reaper.register_child(native).unwrap(),
        fixture.reaper.register_child(std).unwrap(),
    ] {
        let exit = handle.await.unwrap();
        assert_eq!((exit.code(), exit.reaped_by), (Some(5), ReapedBy::Owner));
    }
    // Its pid is not known any more.
    let mut tokio = tokio_child("exit 5");
    tokio.wait().await.unwrap();
    let error = fixture.reaper.register_child(tokio).unwrap_err();
    assert_eq!((error.pid(), error.kind()), (0, RegisterErrorKind::Reaped));
    let status = error.into_child().unwrap().try_wait().unwrap();
    assert_eq!(status.unwrap().code(), Some(5));
    fixture.expect(0, 2, 0).await;
}

/// The child is the reaper's: neither the end of the tokio runtime that spawned it, nor dropping the
/// handle, kills it.
#[tokio::test]
async fn kill_on_drop_of_a_tokio_child_does_not_outlast_its_registration() {
    let fixture = Fixture::new(ShimReaper::builder());
    let child = std::thread::spawn(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        tokio_child("read line; exit 9")
    });
    let child = child.join().unwrap();
    let handle = fixture.reaper.register_child(child).unwrap();
    let mut stdin = handle.take_stdin().unwrap();
    drop(handle.clone());
    assert!(handle.try_wait().unwrap().is_none());
    stdin.write_all(b"\n").await.unwrap();
    assert_eq!(handle.await.unwrap().code(), Some(9));
    fixture.expect(1, 0, 0).await;
}

/// tokio waits for it from then on.
#[tokio::test]
async fn a_tokio_child_that_survives_the_reaper_returns_to_tokio() {
    let spawn = |kill_on_drop| {
        let mut command = tokio::process::Command::new("sleep");
        command.arg("1000").kill_on_drop(kill_on_drop);
        command.spawn().unwrap()
    };
    let reaper = ShimReaper::start();
    let [killed, survivor] = [true, false].map(|kill_on_drop| {
        let handle = reaper.register_child(spawn(kill_on_drop)).unwrap();
        handle.id()
    });
    let report = reaper.shutdown().await;
    assert_eq!(report.still_running.len(), 2);
    eventually("the first is gone", || is_gone(killed)).await;
    assert!(matches!(state_of(survivor), Some('S' | 'R' | 'D')));
    common::kill(survivor, SIGKILL);
    eventually("the second is gone", || is_gone(survivor)).await;
}
