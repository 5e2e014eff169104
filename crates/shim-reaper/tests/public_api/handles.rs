//! `ShimHandle`, and `Pidfd`.

use std::future::IntoFuture;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::time::Duration;

use shim_reaper::{GroupError, Pidfd, ReaperClosed, ShimExit, ShimHandle, Signal, Wait};

use super::{Exit, is_send_future};

async fn handles_are_futures(mut handle: ShimHandle) -> Exit {
    tokio::select! {
        exit = &mut handle => return exit,
        () = std::future::pending() => {}
    }
    let _: Exit = (&handle).await;
    drop::<Wait<'_>>((&handle).into_future());
    drop::<Wait<'_>>(handle.wait());
    let _: Exit = is_send_future(handle.wait()).await;
    let _: Result<Option<ShimExit>, ReaperClosed> =
        is_send_future(handle.wait_timeout(Duration::MAX)).await;
    let _: io::Result<ShimExit> = is_send_future(handle.kill()).await;
    let _: Exit = is_send_future(handle.stop(Duration::ZERO)).await;
    is_send_future(handle.clone()).await
}

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

async fn groups_are_signalled_and_end(handle: &ShimHandle) {
    let _: Result<(), GroupError> = handle.send_group_signal(Signal::SIGTERM);
    let _: Result<ShimExit, GroupError> = is_send_future(handle.kill_group()).await;
    let _: Result<ShimExit, GroupError> = is_send_future(handle.stop_group(Duration::ZERO)).await;
}

fn groups_fail_for_a_reason(error: GroupError) -> (Option<u32>, Option<io::Error>) {
    match error {
        GroupError::NoGroup { pid }
        | GroupError::Empty { pid }
        | GroupError::Unidentified { pid }
        | GroupError::StillRunning { pid } => (Some(pid), None),
        GroupError::Denied { pid, source } | GroupError::Io { pid, source } => {
            (Some(pid), Some(source))
        }
        GroupError::Closed(ReaperClosed) => (None, None),
        _ => unreachable!("the list has all variants"),
    }
}

async fn pidfds_report_and_signal(pid: u32) -> io::Result<Option<ExitStatus>> {
    let pidfd: Pidfd = Pidfd::open(pid)?;
    let _: u32 = pidfd.pid();
    let _: bool = pidfd.has_exited();
    let _: io::Result<()> = is_send_future(pidfd.exited()).await;
    let _: bool = pidfd.is_reaped();
    let _: io::Result<()> = pidfd.send_signal(Signal::SIGTERM);
    Ok(pidfd.exit_status())
}

fn pidfds_convert(pidfd: Pidfd) -> io::Result<Pidfd> {
    let _: BorrowedFd<'_> = pidfd.as_fd();
    let fd: OwnedFd = pidfd.into();
    Pidfd::try_from(fd)
}
