//! What a `ShimHandle` can do. All its clones agree.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::{
    DEADLINE, Fixture, eventually, exits_on_eof, exits_with, is_gone, shell, sleeper, state_of,
};
use nix::errno::Errno;
use nix::sys::signal::Signal::SIGTERM;
use shim_reaper::{Exits, ReapedBy, ReaperBuilder, ShimHandle, ShimReaper, Signal, SpawnOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

in_both_modes!(
    clones_resolve_in_tasks_tokio_runtimes_and_threads,
    awaiting_after_the_exit_resolves_at_once,
    a_handle_can_be_awaited_by_reference_and_in_another_task,
    stop_sends_sigterm_first,
    stop_sends_sigkill_when_the_grace_period_expires,
    stopping_an_exited_shim_succeeds,
    dropping_the_last_handle_kills_with_kill_on_drop,
    dropping_handles_does_not_kill_by_default,
    pipes_are_tokio_types,
    the_pipes_of_a_registered_child_can_be_taken,
    resource_usage_is_reported_for_reaped_shims,
    signals_reach_the_shim_until_it_exits,
    exit_codes_and_signals_are_distinguished,
);

async fn clones_resolve_in_tasks_tokio_runtimes_and_threads(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut child = exits_on_eof(77).spawn().unwrap();
    let stdin = child.stdin.take();
    let handle = fixture.reaper.register_child(child).unwrap();

    let tasks: Vec<_> = (0..20).map(|_| tokio::spawn(handle.clone())).collect();
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                if i % 2 == 0 {
                    futures::executor::block_on(handle)
                } else {
                    common::own_process::block_on(handle)
                }
            })
        })
        .collect();
    eventually("the shim still runs", || handle.is_running()).await;
    drop(stdin);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().code(), Some(77));
    }
    for thread in threads {
        let exit = tokio::task::spawn_blocking(|| thread.join().unwrap())
            .await
            .unwrap();
        assert_eq!(exit.unwrap().code(), Some(77));
    }
    assert_eq!(handle.await.unwrap().code(), Some(77));
    fixture.expect(1, 0, 0).await;
}

async fn awaiting_after_the_exit_resolves_at_once(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(exits_on_eof(5)).unwrap();
    assert!(handle.is_running());
    assert!(handle.try_wait().unwrap().is_none());
    drop(handle.take_stdin());
    fixture.expect(1, 0, 0).await;
    assert!(!handle.is_running());
    assert_eq!(handle.try_wait().unwrap().unwrap().code(), Some(5));
    let Poll::Ready(exit) = futures::poll!(handle.clone()) else {
        panic!("a handle whose shim is reaped is ready");
    };
    assert_eq!(exit.unwrap().code(), Some(5));
    fixture.reaper.shutdown().await;
    assert_eq!(handle.await.unwrap().code(), Some(5));
}

async fn a_handle_can_be_awaited_by_reference_and_in_another_task(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut child = exits_on_eof(6).spawn().unwrap();
    let stdin = child.stdin.take();
    let mut handle = fixture.reaper.register_child(child).unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(5), &mut handle)
            .await
            .is_err()
    );
    // The same handle, with the waker of another task.
    let task = tokio::spawn(handle);
    drop(stdin);
    assert_eq!(task.await.unwrap().unwrap().code(), Some(6));
}

async fn stop_sends_sigterm_first(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    let exit = handle.stop(DEADLINE * 10).await.unwrap();
    assert_eq!(exit.signal(), Some(SIGTERM as i32));
    assert_eq!(exit.shell_code(), Some(128 + 15));
}

async fn stop_sends_sigkill_when_the_grace_period_expires(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut shim = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
    shim.stdout(Stdio::piped());
    let handle = fixture.reaper.spawn(shim).unwrap();
    let mut ready = [0; 6];
    handle
        .take_stdout()
        .unwrap()
        .read_exact(&mut ready)
        .await
        .unwrap();
    let exit = handle.stop(Duration::from_millis(50)).await.unwrap();
    assert_eq!((exit.signal(), exit.shell_code()), (Some(9), Some(137)));
    assert!(is_gone(handle.id()));
}

async fn stopping_an_exited_shim_succeeds(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(exits_with(4)).unwrap();
    fixture.expect(1, 0, 0).await;
    for _ in 0..2 {
        assert_eq!(handle.stop(DEADLINE).await.unwrap().code(), Some(4));
    }
}

async fn dropping_the_last_handle_kills_with_kill_on_drop(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(10)));
    let options = SpawnOptions::new().kill_on_drop(true);
    let handle = fixture.reaper.spawn_with(sleeper(), options).unwrap();
    let pid = handle.id();
    // A handle from `register` neither keeps the shim alive nor kills it.
    drop(fixture.reaper.register(pid).unwrap());
    let clone = handle.clone();
    drop(handle);
    fixture.sweeps(3).await;
    assert!(
        matches!(state_of(pid), Some('S' | 'R')),
        "the shim runs while a handle is left"
    );
    drop(clone);
    eventually("the shim is killed and reaped", || is_gone(pid)).await;
    fixture.expect(1, 0, 0).await;
}

async fn dropping_handles_does_not_kill_by_default(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(10)));
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    let pid = handle.id();
    drop(handle);
    fixture.sweeps(5).await;
    assert!(matches!(state_of(pid), Some('S' | 'R')));
    common::kill(pid, SIGTERM);
    fixture.expect(1, 0, 0).await;
}

async fn pipes_are_tokio_types(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut echo = Command::new("sh");
    echo.args(["-c", "cat; echo done >&2; exit 3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let handle = fixture.reaper.spawn(echo).unwrap();
    let mut stdin: tokio::process::ChildStdin = handle.take_stdin().unwrap();
    let mut stdout: tokio::process::ChildStdout = handle.take_stdout().unwrap();
    let mut stderr: tokio::process::ChildStderr = handle.take_stderr().unwrap();
    assert!(handle.take_stdin().is_none() && handle.clone().take_stdout().is_none());

    stdin.write_all(b"hello").await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).await.unwrap();
    stderr.read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("hello", "done\n"));
    assert_eq!(handle.await.unwrap().code(), Some(3));
}

async fn the_pipes_of_a_registered_child_can_be_taken(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let child = exits_on_eof(2).spawn().unwrap();
    let handle = fixture.reaper.register_child(child).unwrap();
    assert!(handle.take_stdout().is_none(), "stdout was not piped");
    drop(handle.take_stdin().unwrap());
    assert_eq!(handle.await.unwrap().code(), Some(2));

    // A pipe that the owner does not take is closed with the last handle.
    let child = exits_on_eof(2).spawn().unwrap();
    let pid = child.id();
    drop(fixture.reaper.register_child(child).unwrap());
    eventually("the child sees the end of its input", || is_gone(pid)).await;
}

#[test]
fn pipes_can_be_taken_outside_a_tokio_runtime() {
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    futures::executor::block_on(async {
        let mut echo = Command::new("cat");
        echo.stdin(Stdio::piped()).stdout(Stdio::piped());
        let handle = reaper.spawn(echo).unwrap();
        let mut stdin = handle.take_stdin().unwrap();
        stdin.write_all(b"hello").await.unwrap();
        drop(stdin);
        let mut out = String::new();
        handle
            .take_stdout()
            .unwrap()
            .read_to_string(&mut out)
            .await
            .unwrap();
        assert_eq!(out, "hello");
        assert!(handle.await.unwrap().success());
    });
}

async fn resource_usage_is_reported_for_reaped_shims(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.owner_grace(Duration::from_millis(10)));
    let work = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";
    let spawned = fixture.reaper.spawn(shell(work)).unwrap();
    let child = shell(work).spawn().unwrap();
    let registered = fixture.reaper.register(child.id()).unwrap();
    for handle in [spawned, registered] {
        let usage = handle.await.unwrap().rusage.unwrap();
        assert!(usage.user_time + usage.system_time > Duration::ZERO);
        assert!(usage.max_rss > 100 * 1024, "in bytes: {}", usage.max_rss);
        assert!(usage.minor_faults > 0);
    }
}

async fn signals_reach_the_shim_until_it_exits(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut shim = shell("trap 'echo got it' USR1; echo ready; while :; do sleep 0.01; done");
    shim.stdout(Stdio::piped());
    let handle = fixture.reaper.spawn(shim).unwrap();
    let mut stdout = handle.take_stdout().unwrap();
    let mut line = [0; 6];
    stdout.read_exact(&mut line).await.unwrap();
    handle.send_signal(Signal::SIGUSR1).unwrap();
    let mut line = [0; 7];
    stdout.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"got it\n");
    handle.start_kill().unwrap();
    handle.clone().await.unwrap();
    let error = handle.send_signal(Signal::SIGKILL).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32));
    // As with std and tokio, killing a process that has ended succeeds.
    handle.start_kill().unwrap();
    assert_eq!(handle.kill().await.unwrap().signal(), Some(9));
}

async fn exit_codes_and_signals_are_distinguished(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let cases = [
        ("exit 0", Some(0), None, Some(0)),
        ("exit 255", Some(255), None, Some(255)),
        ("kill -TERM $$", None, Some(15), Some(143)),
        ("ulimit -c 0; kill -ABRT $$", None, Some(6), Some(134)),
        ("kill -SEGV $$", None, Some(11), Some(139)),
    ];
    for (script, code, signal, shell_code) in cases {
        let handle = fixture.reaper.spawn(shell(script)).unwrap();
        let exit = handle.clone().await.unwrap();
        assert_eq!(exit.pid, handle.id());
        assert_eq!(exit.reaped_by, ReapedBy::Reaper);
        assert_eq!(
            (exit.code(), exit.signal(), exit.shell_code()),
            (code, signal, shell_code)
        );
        assert_eq!(exit.success(), code == Some(0));
    }
    fixture.expect(cases.len() as u64, 0, 0).await;
}

#[test]
fn reapers_handles_and_streams_are_send_sync_and_unpin() {
    fn check<T: Send + Sync + Unpin + std::fmt::Debug + 'static>() {}
    check::<ShimReaper>();
    check::<ShimHandle>();
    check::<Exits>();
}

/// Wakers come from the executor of the caller, and may panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_waker_does_not_affect_other_tasks() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("injected");
        }
    }
    let fixture = Fixture::new(ShimReaper::builder());
    let mut child = exits_on_eof(5).spawn().unwrap();
    let stdin = child.stdin.take();
    let handle = fixture.reaper.register_child(child).unwrap();
    let mut clone = pin!(handle.clone());
    let waker = Waker::from(Arc::new(Panics));
    assert!(
        clone
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    let task = tokio::spawn(tokio::time::timeout(DEADLINE, handle));
    drop(stdin);
    assert_eq!(task.await.unwrap().unwrap().unwrap().code(), Some(5));
    assert_eq!(fixture.reaper.stats().respawns_total, 0);
}

#[tokio::test]
async fn a_handle_shows_its_pid() {
    let handle = ShimReaper::start().spawn(exits_with(3)).unwrap();
    assert!(format!("{handle:?}").contains(&handle.id().to_string()));
    handle.await.unwrap();
}

#[tokio::test]
async fn a_core_dump_is_reported() {
    let dir = std::env::temp_dir().join(format!("shim-reaper-core-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -c 8; kill -QUIT $$"])
        .current_dir(&dir);
    let expected = command.status().unwrap();
    let exit = ShimReaper::start().spawn(command).unwrap().await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    if !expected.core_dumped() {
        eprintln!("SKIPPED: this host writes no core dumps");
    }
    assert_eq!(exit.status, Some(expected));
}
