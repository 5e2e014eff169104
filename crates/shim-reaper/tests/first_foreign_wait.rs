//! The pidfd of a native child exists before any wait: not even the first foreign wait of a process
//! takes an exit status.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use common::Fixture;
use common::kernel_is_at_least;
use common::own_process::{block_on, ignore_sigchld, in_own_process};
use nix::libc;
use nix::sys::signal::Signal::SIGCHLD;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use shim_reaper::{Command, ReapedBy, ShimReaper};

const ROUNDS: i32 = 400;

#[test]
fn the_first_foreign_wait_takes_no_exit_status_of_a_native_child() {
    in_own_process(
        "the_first_foreign_wait_takes_no_exit_status_of_a_native_child",
        || {
            thread::spawn(|| {
                loop {
                    let _ = waitpid(Pid::from_raw(-1), None);
                }
            });
            spawn_short_lived_children();
        },
    );
}

#[test]
fn ignoring_sigchld_takes_no_exit_status_of_a_native_child() {
    in_own_process(
        "ignoring_sigchld_takes_no_exit_status_of_a_native_child",
        || {
            ignore_sigchld();
            spawn_short_lived_children();
        },
    );
}

/// Each child is the first one of its reaper, which has not seen the foreign waits yet.
fn spawn_short_lived_children() {
    block_on(async {
        for round in 0..ROUNDS {
            let fixture = Fixture::new(ShimReaper::builder());
            let code = round % 250;
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exit {code}")]);
            let exit = fixture.reaper.spawn(command).unwrap().await.unwrap();
            let reaped_elsewhere = exit.reaped_by == ReapedBy::ForeignWait;
            // Older kernels do not keep the status for the pidfd.
            if !reaped_elsewhere || kernel_is_at_least(6, 15) {
                assert_eq!(exit.code(), Some(code), "round {round}: {exit:?}");
            }
            let elsewhere = u64::from(reaped_elsewhere);
            fixture.expect(1 - elsewhere, elsewhere, 0).await;
            assert_eq!(fixture.reaper.stats().foreign_waits_total, elsewhere);
            fixture.reaper.shutdown().await;
        }
    });
}

static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A std command forks where its child has to open its own pidfd.
#[test]
fn a_native_child_is_never_forked() {
    in_own_process("a_native_child_is_never_forked", || {
        // SAFETY: the handler only adds to an atomic number.
        unsafe {
            libc::pthread_atfork(Some(count_fork), None, None);
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        }
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder().early_pidfd(true));
            let native = fixture.reaper.spawn(Command::new("true")).unwrap();
            assert!(native.await.unwrap().rusage.is_none());
            assert_eq!(FORKS.load(Ordering::Relaxed), 0);
            let std = std::process::Command::new("true");
            fixture.reaper.spawn(std).unwrap().await.unwrap();
            assert_eq!(FORKS.load(Ordering::Relaxed), 1);
        });
    });
}

/// The child of a std command opens its own pidfd, which takes a fork, if the kernel could reap it
/// before its parent opens one.
#[test]
fn the_child_of_a_std_command_is_forked_only_while_the_kernel_reaps_children() {
    let forks = async || {
        // A new one each time: a foreign wait makes a reaper fork later children too.
        let fixture = Fixture::new(ShimReaper::builder().early_pidfd(false));
        let command = std::process::Command::new("true");
        fixture.reaper.spawn(command).unwrap().await.unwrap();
        FORKS.swap(0, Ordering::Relaxed)
    };
    let set_action = |handler, flags| {
        let action = SigAction::new(handler, flags, SigSet::empty());
        // SAFETY: installs no handler function.
        unsafe { sigaction(SIGCHLD, &action) }.unwrap();
    };
    in_own_process(
        "the_child_of_a_std_command_is_forked_only_while_the_kernel_reaps_children",
        || {
            // SAFETY: the handler only adds to an atomic number.
            unsafe { libc::pthread_atfork(Some(count_fork), None, None) };
            block_on(async {
                assert_eq!(forks().await, 0);
                set_action(SigHandler::SigIgn, SaFlags::empty());
                assert_eq!(forks().await, 1);
                set_action(SigHandler::SigDfl, SaFlags::SA_NOCLDWAIT);
                assert_eq!(forks().await, 1);
            });
        },
    );
}
