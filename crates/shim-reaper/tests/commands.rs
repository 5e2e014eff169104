//! `spawn` accepts the commands of `pidfd-spawn`, std and tokio, by value and by reference.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::time::Duration;

use common::own_process::{block_on, in_own_process};
use common::{Fixture, eventually, is_gone, state_of};
use nix::errno::Errno;
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::getpgid;
use shim_reaper::pidfd_spawn::{SpawnError, Step};
use shim_reaper::{Command, ReapedBy, ReaperClosed, ShimReaper, SpawnCommand, SpawnOptions};
use tokio::io::AsyncReadExt;

/// Reads a line, writes the greeting, and exits with 7.
const SCRIPT: &str = "read line; echo hello $line; exit 7";

fn native(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn std(script: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]);
    command
}

fn tokio(script: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", script]);
    command
}

macro_rules! piped {
    ($command:expr, $stdio:ty) => {{
        let mut command = $command;
        command.stdin(<$stdio>::piped()).stdout(<$stdio>::piped());
        command
    }};
}

/// Spawns with options, writes to the shim, and reads from it.
async fn greet(fixture: &Fixture, command: impl SpawnCommand) {
    let options = SpawnOptions::new().process_group(0);
    let handle = fixture.reaper.spawn_with(command, options).unwrap();
    let pid = common::as_pid(handle.id());
    assert_eq!(getpgid(Some(pid)).unwrap(), pid);
    let mut stdin = handle.take_stdin().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"world\n")
        .await
        .unwrap();
    let mut output = String::new();
    let mut stdout = handle.take_stdout().unwrap();
    stdout.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "hello world\n");
    let exit = handle.wait().await.unwrap();
    assert_eq!(exit.code(), Some(7));
    assert_eq!(exit.reaped_by, ReapedBy::Reaper);
    assert!(is_gone(handle.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_of_command_is_accepted_by_value_and_by_reference() {
    for early_pidfd in [false, true] {
        let fixture = Fixture::new(ShimReaper::builder().early_pidfd(early_pidfd));
        greet(&fixture, piped!(native(SCRIPT), shim_reaper::Stdio)).await;
        greet(&fixture, piped!(std(SCRIPT), std::process::Stdio)).await;
        greet(&fixture, piped!(tokio(SCRIPT), std::process::Stdio)).await;
        let mut native = piped!(native(SCRIPT), shim_reaper::Stdio);
        let mut std = piped!(std(SCRIPT), std::process::Stdio);
        let mut tokio = piped!(tokio(SCRIPT), std::process::Stdio);
        // A command can be spawned again.
        for _ in 0..2 {
            greet(&fixture, &mut native).await;
            greet(&fixture, &mut std).await;
            greet(&fixture, &mut tokio).await;
        }
        fixture.expect(9, 0, 0).await;
    }
}

/// Its first child reports through a socket, whose number another descriptor has later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_std_command_that_is_spawned_elsewhere_later_reports_nothing() {
    let fixture = Fixture::new(ShimReaper::builder().early_pidfd(true));
    let mut command = std("exit 3");
    fixture.reaper.spawn(&mut command).unwrap().await.unwrap();
    // Sockets with all the numbers that were free.
    let mut pairs: Vec<_> = (0..32)
        .map(|_| std::os::unix::net::UnixStream::pair().unwrap())
        .collect();
    assert_eq!(command.status().unwrap().code(), Some(3));
    for (socket, peer) in &mut pairs {
        for socket in [socket, peer] {
            socket.set_nonblocking(true).unwrap();
            let read = io::Read::read(socket, &mut [0; 8]);
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}

#[tokio::test]
async fn the_kill_on_drop_of_a_tokio_command_is_kept() {
    let fixture = Fixture::new(ShimReaper::builder());
    let mut command = tokio("exec sleep 1000");
    let survivor = fixture.reaper.spawn(&mut command).unwrap().id();
    command.kill_on_drop(true);
    let pid = fixture.reaper.spawn(&mut command).unwrap().id();
    eventually("the shim is killed and reaped", || is_gone(pid)).await;
    assert!(matches!(state_of(survivor), Some('S' | 'R')));
    common::kill(survivor, SIGKILL);
    eventually("the other shim is reaped", || is_gone(survivor)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_of_every_type_of_command_is_that_of_its_own_spawn() {
    let fixture = Fixture::new(ShimReaper::builder());
    let missing = "/nonexistent/shim";
    for error in [
        fixture.reaper.spawn(Command::new(missing)).unwrap_err(),
        fixture
            .reaper
            .spawn(std::process::Command::new(missing))
            .unwrap_err(),
        fixture
            .reaper
            .spawn(tokio::process::Command::new(missing))
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
    let error = fixture.reaper.spawn(Command::new(missing)).unwrap_err();
    let error = error.get_ref().unwrap().downcast_ref::<SpawnError>();
    assert_eq!(error.unwrap().step(), Step::Exec);
    fixture.expect(0, 0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_pidfds_a_native_child_is_reaped_by_the_sweep() {
    let builder = ShimReaper::builder().pidfd(false);
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let handle = fixture.reaper.spawn(native("exit 4")).unwrap();
    assert!(handle.pidfd().is_err());
    assert_eq!(handle.wait().await.unwrap().code(), Some(4));
    fixture.expect(1, 0, 0).await;
}

/// The threads spawn until the reaper refuses. A child whose registration came too late is undone.
#[test]
fn no_native_child_is_left_by_a_spawn_that_races_a_shutdown() {
    in_own_process(
        "no_native_child_is_left_by_a_spawn_that_races_a_shutdown",
        || {
            block_on(async {
                for _ in 0..50 {
                    race_a_shutdown().await;
                    let left = waitpid(None, Some(WaitPidFlag::WNOHANG));
                    assert_eq!(left, Err(Errno::ECHILD));
                }
            });
        },
    );
}

async fn race_a_shutdown() {
    let reaper = ShimReaper::start();
    let threads = [(); 2].map(|()| {
        let reaper = reaper.clone();
        std::thread::spawn(move || {
            loop {
                if let Err(error) = reaper.spawn(Command::new("sleep").arg("1000")) {
                    return error;
                }
            }
        })
    });
    eventually("a shim runs", || !reaper.registered().is_empty()).await;
    let report = reaper.shutdown_stopping(Duration::ZERO).await;
    assert!(report.still_running.is_empty());
    for thread in threads {
        let error = thread.join().unwrap();
        assert!(error.get_ref().unwrap().is::<ReaperClosed>());
    }
}

/// The child replaces sockets that std creates for itself before it executes the program.
#[tokio::test]
async fn a_child_of_std_keeps_the_socket_that_is_its_stdin() {
    let fixture = Fixture::new(ShimReaper::builder().early_pidfd(true));
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let sockets = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC);
        let (stdin, sender) = sockets.unwrap();
        let mut command = std("cat; exit 7");
        command.stdin(stdin).stdout(std::process::Stdio::piped());
        let handle = fixture.reaper.spawn(&mut command).unwrap();
        drop(command);
        nix::unistd::write(&sender, b"hello\n").unwrap();
        drop(sender);
        let mut output = String::new();
        let mut stdout = handle.take_stdout().unwrap();
        stdout.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "hello\n");
        assert_eq!(handle.await.unwrap().code(), Some(7));
    }
}

#[tokio::test]
async fn a_child_inherits_no_descriptor_of_the_reaper() {
    for reaper in [
        ShimReaper::start(),
        ShimReaper::builder().start_dedicated().unwrap(),
    ] {
        let mut command = std("ls -l /proc/self/fd");
        command.stdout(std::process::Stdio::piped());
        let handle = reaper.spawn(command).unwrap();
        let mut output = String::new();
        let mut stdout = handle.take_stdout().unwrap();
        stdout.read_to_string(&mut output).await.unwrap();
        assert!(
            output.contains("pipe:") && !output.contains("anon_inode"),
            "{output}"
        );
        handle.await.unwrap();
    }
}
