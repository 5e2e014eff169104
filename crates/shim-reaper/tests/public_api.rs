//! The signatures and the auto traits that users depend on. It compiles, or the API has a break.
#![allow(clippy::unwrap_used)]

use std::future::{Future, IntoFuture};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::time::{Duration, SystemTime};

use futures::Stream;
use shim_reaper::{
    DropGuard, Exits, InvalidSignal, Pidfd, ReaperBuilder, ReaperClosed, ReaperStats,
    RegisterError, ShimExit, ShimHandle, ShimReaper, ShutdownReport, Signal, SpawnOptions,
    StopReport, Wait,
};
use tokio_util::sync::CancellationToken;

type Exit = Result<ShimExit, ReaperClosed>;

fn is_send_future<T>(future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
    future
}

fn is_shared<T: Send + Sync + Unpin + 'static>() {}

#[test]
fn types_can_be_sent_shared_and_moved() {
    is_shared::<ShimReaper>();
    is_shared::<ReaperBuilder>();
    is_shared::<ShimHandle>();
    is_shared::<Exits>();
    is_shared::<Pidfd>();
    is_shared::<DropGuard>();
    is_shared::<ShimExit>();
    is_shared::<RegisterError>();
    is_shared::<Wait<'static>>();
}

/// Never called: the signatures are the test.
#[allow(dead_code)]
fn commands_are_spawned_by_value_and_by_reference(
    reaper: &ShimReaper,
    options: SpawnOptions,
) -> [io::Result<ShimHandle>; 7] {
    let mut std = process::Command::new("true");
    let mut tokio = tokio::process::Command::new("true");
    let mut native = shim_reaper::Command::new("true");
    [
        reaper.spawn(&mut std),
        reaper.spawn(&mut tokio),
        reaper.spawn(&mut native),
        reaper.spawn_with(std, options),
        reaper.spawn_with(tokio, options),
        reaper.spawn_with(native, options),
        reaper.spawn(shim_reaper::Command::new("true").arg("x")),
    ]
}

#[allow(dead_code)]
fn processes_are_registered(reaper: &ShimReaper, pid: u32, pidfd: OwnedFd, opened: Pidfd) {
    let _: Result<ShimHandle, RegisterError> = reaper.register(pid);
    let _: Result<ShimHandle, RegisterError> = reaper.register(pidfd);
    let _: Result<ShimHandle, RegisterError> = reaper.attach(pid);
    let _: Result<ShimHandle, RegisterError> = reaper.attach(opened);
    let _: Vec<u32> = reaper.registered();
}

#[allow(dead_code)]
fn children_are_registered(
    reaper: &ShimReaper,
    std: process::Child,
    tokio: tokio::process::Child,
    native: shim_reaper::pidfd_spawn::Child,
) {
    if let Err(error) = reaper.register_child(std) {
        let _: Option<process::Child> = error.into_child();
    }
    if let Err(error) = reaper.register_child(tokio) {
        let _: Option<tokio::process::Child> = error.into_child();
    }
    if let Err(error) = reaper.register_child(native) {
        let _: Option<shim_reaper::pidfd_spawn::Child> = error.into_child();
    }
}

#[allow(dead_code)]
async fn handles_are_futures(mut handle: ShimHandle) -> Exit {
    tokio::select! {
        exit = &mut handle => return exit,
        () = std::future::pending() => {}
    }
    let _: Exit = (&handle).await;
    drop::<Wait<'_>>((&handle).into_future());
    let _: Exit = is_send_future(handle.wait()).await;
    let _: Result<Option<ShimExit>, ReaperClosed> =
        is_send_future(handle.wait_timeout(Duration::MAX)).await;
    let _: io::Result<ShimExit> = is_send_future(handle.kill()).await;
    let _: Exit = is_send_future(handle.stop(Duration::ZERO)).await;
    is_send_future(handle.clone()).await
}

#[allow(dead_code)]
fn handles_have_the_methods_of_a_child(handle: &ShimHandle) {
    let _: u32 = handle.id();
    let _: bool = handle.is_running();
    let _: Exit = handle.wait_blocking();
    let _: Result<Option<ShimExit>, ReaperClosed> = handle.try_wait();
    let _: io::Result<()> = handle.start_kill();
    let _: io::Result<()> = handle.send_signal(Signal::SIGTERM);
    let _: io::Result<BorrowedFd<'_>> = handle.pidfd();
    let _: Option<tokio::process::ChildStdin> = handle.take_stdin();
    let _: Option<tokio::process::ChildStdout> = handle.take_stdout();
    let _: Option<tokio::process::ChildStderr> = handle.take_stderr();
}

#[allow(dead_code)]
async fn reapers_stop_and_shut_down(reaper: &ShimReaper, grace: Duration) {
    let _: StopReport = is_send_future(reaper.stop_all(grace)).await;
    let _: StopReport = reaper.stop_all_sync(grace);
    let _: ShutdownReport = is_send_future(reaper.shutdown()).await;
    let _: ShutdownReport = reaper.shutdown_sync();
    let _: ShutdownReport = is_send_future(reaper.shutdown_stopping(grace)).await;
    let _: ShutdownReport = reaper.shutdown_stopping_sync(grace);
    let _: DropGuard = reaper.drop_guard();
    let _: DropGuard = reaper.stopping_drop_guard(grace);
}

#[allow(dead_code)]
fn reapers_are_built(token: CancellationToken, runtime: &tokio::runtime::Handle) {
    let builder: ReaperBuilder = ShimReaper::builder()
        .sweep_interval(Duration::from_millis(250))
        .owner_grace(Duration::ZERO)
        .shutdown_token(token.clone())
        .shutdown_stopping_token(token, Duration::ZERO)
        .pidfd(true);
    let _: ShimReaper = builder.clone().start();
    let _: ShimReaper = builder.clone().start_on(runtime);
    let _: io::Result<ShimReaper> = builder.start_dedicated();
}

#[allow(dead_code)]
fn exits_are_streams(reaper: &ShimReaper) -> impl Stream<Item = ShimExit> + Send + 'static {
    let _: u64 = reaper.exits_bounded(1_000).dropped();
    reaper.exits()
}

#[allow(dead_code)]
fn stats_use_the_types_of_std(stats: ReaperStats) -> Option<SystemTime> {
    stats.last_sweep_at
}

#[allow(dead_code)]
fn signals_convert(number: i32) -> Result<i32, InvalidSignal> {
    let signal = Signal::try_from(number)?;
    let _: Option<Signal> = Signal::real_time(0);
    Ok(signal.into())
}

#[allow(dead_code)]
fn pidfds_convert(pidfd: Pidfd) -> io::Result<Pidfd> {
    let _: BorrowedFd<'_> = pidfd.as_fd();
    let fd: OwnedFd = pidfd.into();
    Pidfd::try_from(fd)
}

#[tokio::test]
async fn a_reaper_is_logged_in_short() {
    let reaper = ShimReaper::start();
    let mut sleeper = process::Command::new("sleep");
    sleeper.arg("1000");
    let options = SpawnOptions::new().kill_on_drop(true);
    let _shim = reaper.spawn_with(sleeper, options).unwrap();
    let expected = "ShimReaper { registered: 1, closed: false, .. }";
    assert_eq!(format!("{reaper:?}"), expected);
    reaper.shutdown().await;
    let expected = "ShimReaper { registered: 0, closed: true, .. }";
    assert_eq!(format!("{reaper:?}"), expected);
}
