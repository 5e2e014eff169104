//! `ShimReaper`, its builder, and what it accepts.

use std::io;
use std::os::fd::OwnedFd;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use shim_reaper::{
    ChildProcess, DropGuard, Exits, Metrics, MetricsSink, Pidfd, ProcessRef, ReaperBuilder,
    ReaperStats, RegisterError, RegisterErrorKind, ShimExit, ShimHandle, ShimReaper,
    ShutdownReport, SpawnCommand, SpawnOptions, Stdio, StopReport,
};
use tokio_util::sync::CancellationToken;

use super::is_send_future;

fn reapers_are_built(
    token: CancellationToken,
    runtime: &tokio::runtime::Handle,
    metrics: Arc<dyn Metrics>,
) {
    let builder: ReaperBuilder = ShimReaper::builder()
        .sweep_interval(Duration::from_millis(250))
        .owner_grace(Duration::ZERO)
        .metrics(metrics)
        .metrics_sink(MetricsSink::default())
        .shutdown_token(token.clone())
        .shutdown_stopping_token(token, Duration::ZERO)
        .pidfd(true)
        .early_pidfd(true)
        .subreaper(false)
        .io_uring(true);
    let _: ShimReaper = builder.clone().start();
    let _: ShimReaper = builder.clone().start_on(runtime);
    let _: io::Result<ShimReaper> = builder.start_dedicated();
    let _: ShimReaper = ShimReaper::start().clone();
}

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

fn options_are_methods_and_fields() -> (bool, Option<i32>) {
    let options: SpawnOptions = SpawnOptions::new().kill_on_drop(true).process_group(0);
    (options.kill_on_drop, options.process_group)
}

fn arguments_are_generic<C: ChildProcess>(
    reaper: &ShimReaper,
    command: impl SpawnCommand,
    processes: (impl ProcessRef, impl ProcessRef),
    child: C,
) -> Result<ShimHandle, RegisterError<C>> {
    let _: io::Result<ShimHandle> = reaper.spawn(command);
    let _: Result<ShimHandle, RegisterError> = reaper.register(processes.0);
    let _: Result<ShimHandle, RegisterError> = reaper.attach(processes.1);
    reaper.register_child(child)
}

fn processes_are_registered(reaper: &ShimReaper, pid: u32, pidfd: OwnedFd, opened: Pidfd) {
    let _: Result<ShimHandle, RegisterError> = reaper.register(pid);
    let _: Result<ShimHandle, RegisterError> = reaper.register(pidfd);
    let _: Result<ShimHandle, RegisterError> = reaper.attach(pid);
    let _: Result<ShimHandle, RegisterError> = reaper.attach(opened);
    let _: Vec<u32> = reaper.registered();
}

fn children_are_registered(
    reaper: &ShimReaper,
    std: process::Child,
    tokio: tokio::process::Child,
    native: shim_reaper::pidfd_spawn::Child,
) {
    if let Err(error) = reaper.register_child(std) {
        let _: u32 = error.pid();
        let _: RegisterErrorKind = error.kind();
        let _: Option<process::Child> = error.into_child();
    }
    if let Err(error) = reaper.register_child(tokio) {
        let _: Option<tokio::process::Child> = error.into_child();
    }
    if let Err(error) = reaper.register_child(native) {
        let _: Option<shim_reaper::pidfd_spawn::Child> = error.into_child();
    }
}

fn refusals_have_a_reason(kind: RegisterErrorKind) -> bool {
    match kind {
        RegisterErrorKind::Zero
        | RegisterErrorKind::ThisProcess
        | RegisterErrorKind::OutOfRange
        | RegisterErrorKind::NotAPidfd
        | RegisterErrorKind::Reaped => false,
        RegisterErrorKind::Closed => true,
        _ => unreachable!("the list has all variants"),
    }
}

async fn reapers_stop_and_shut_down(reaper: &ShimReaper, grace: Duration) {
    let _: StopReport = is_send_future(reaper.stop_all(grace)).await;
    let _: StopReport = reaper.stop_all_sync(grace);
    let _: ShutdownReport = is_send_future(reaper.shutdown()).await;
    let _: ShutdownReport = reaper.shutdown_sync();
    let _: ShutdownReport = is_send_future(reaper.shutdown_stopping(grace)).await;
    let _: ShutdownReport = reaper.shutdown_stopping_sync(grace);
    let guard: DropGuard = reaper.drop_guard();
    guard.disarm();
    let guard: DropGuard = reaper.stopping_drop_guard(grace);
    guard.disarm();
}

fn exits_are_streams(reaper: &ShimReaper) -> impl Stream<Item = ShimExit> + Send + 'static {
    let bounded: Exits = reaper.exits_bounded(1_000);
    let _: u64 = bounded.dropped();
    let exits: Exits = reaper.exits();
    exits
}

fn reapers_report_their_health(reaper: &ShimReaper) -> (ReaperStats, bool) {
    (reaper.stats(), reaper.worker_alive())
}

fn streams_of_a_command_are_those_of_pidfd_spawn(command: &mut shim_reaper::Command) {
    let command: &mut pidfd_spawn::Command = command.stdout(Stdio::piped());
    let _: &mut shim_reaper::pidfd_spawn::Command = command.stderr(pidfd_spawn::Stdio::null());
}
