//! Closures that run in the child, and execution without a child.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;

use common::own_process::{in_own_process, in_own_process_unchecked, own_process};
use common::{DEADLINE, own_children, shell, status_of, stdout_of};
use nix::libc;
use pidfd_spawn::{Command, Step};

#[test]
fn closures_run_in_order_after_all_other_steps() {
    let status = status_of(|command| {
        command.no_new_privs(true);
        // SAFETY: the closures make system calls.
        unsafe {
            command.pre_exec(
                || match libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) {
                    1 => Ok(()),
                    _ => Err(io::Error::from_raw_os_error(libc::EIO)),
                },
            );
            command.pre_exec(|| {
                libc::umask(0o111);
                Ok(())
            });
            command.pre_exec(|| match libc::umask(0o123) {
                0o111 => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::EIO)),
            });
        }
    });
    assert_eq!(status["Umask"], "0123");
}

#[test]
fn closures_do_not_change_the_memory_of_the_parent() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let mut command = Command::new("/bin/true");
    // SAFETY: the closure uses an atomic.
    unsafe {
        command.pre_exec(|| {
            CALLS.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
    }
    assert!(command.status().unwrap().success());
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);
}

#[test]
fn the_error_of_a_closure_is_that_of_the_spawn() {
    let mut command = Command::new("/bin/true");
    // SAFETY: the closures return constants.
    unsafe {
        command.pre_exec(|| Err(io::Error::from_raw_os_error(libc::EDOM)));
    }
    let error = command.spawn().unwrap_err();
    assert_eq!(error.step(), Step::PreExec);
    assert_eq!(error.raw_os_error(), Some(libc::EDOM));
}

#[test]
fn a_panic_in_a_closure_ends_only_the_child() {
    in_own_process("a_panic_in_a_closure_ends_only_the_child", || {
        let mut command = Command::new("/bin/true");
        // SAFETY: this process has no other thread that could hold a lock.
        unsafe { command.pre_exec(|| panic!("for the test")) };
        let status = command.status().unwrap();
        assert_eq!(status.code(), None);
        assert_eq!(own_children(), []);
    });
}

#[test]
fn a_forked_child_ends_if_its_parent_dies_meanwhile() {
    extern "C" fn die() {
        // SAFETY: ends this process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    let command = own_process("a_forked_child_ends_if_its_parent_dies_meanwhile", || {
        // SAFETY: the handler, which runs in the parent, and the closure make system calls or none.
        unsafe {
            libc::pthread_atfork(None, Some(die), None);
            let _ = shell("exec sleep 300").pre_exec(|| Ok(())).spawn();
        }
    });
    let Some(mut command) = command else { return };
    let mut parent = command.stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(parent.wait().unwrap().signal(), Some(libc::SIGKILL));
    // The child has the other end of the pipe too.
    let (sender, receiver) = mpsc::channel();
    let mut stdout = parent.stdout.take().unwrap();
    thread::spawn(move || sender.send(stdout.read_to_end(&mut Vec::new())));
    receiver.recv_timeout(DEADLINE).unwrap().unwrap();
}

#[test]
fn a_closure_decides_on_the_signal_mask() {
    let status = status_of(|command| {
        // SAFETY: makes a system call.
        unsafe { command.pre_exec(block_sigusr1) };
    });
    assert_eq!(status["SigBlk"], "0000000000000200");
}

#[test]
fn exec_replaces_the_process() {
    let output = in_own_process_unchecked("exec_replaces_the_process", || {
        let mut command = shell("echo replaced $GREETING in $PWD; ulimit -n; exit 33");
        command
            .env("GREETING", "hello")
            .current_dir("/proc")
            .rlimit(pidfd_spawn::Resource::Nofile, 50, 50);
        panic!("{}", command.exec());
    });
    let Some(output) = output else { return };
    assert_eq!(output.status.code(), Some(33), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.ends_with("replaced hello in /proc\n50\n"),
        "{stdout}"
    );
}

#[test]
fn exec_keeps_the_signal_mask_on_request() {
    let output = in_own_process_unchecked("exec_keeps_the_signal_mask_on_request", || {
        block_sigusr1().unwrap();
        let mut command = Command::new("/bin/grep");
        command.args(["SigBlk", "/proc/self/status"]);
        panic!("{}", command.inherit_signal_mask(true).exec());
    });
    let Some(output) = output else { return };
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.ends_with("SigBlk:\t0000000000000200\n"), "{stdout}");
}

fn block_sigusr1() -> io::Result<()> {
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGUSR1);
    Ok(blocked.thread_set_mask()?)
}

#[test]
fn a_failed_exec_returns() {
    block_sigusr1().unwrap();
    let error = Command::new("/nonexistent").exec();
    assert_eq!(error.step(), Step::Exec);
    assert_eq!(stdout_of(&mut shell("echo alive")), "alive");
    let blocked = nix::sys::signal::SigSet::thread_get_mask().unwrap();
    assert!(blocked.contains(nix::sys::signal::Signal::SIGUSR1));
}
