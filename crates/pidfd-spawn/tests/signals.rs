//! Signal dispositions and masks of a child, and signals that arrive during its birth.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use common::own_process::in_own_process;
use common::seccomp::{Refuse, When, refuse};
use common::{Repeat, status_of};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use pidfd_spawn::Command;

/// The bit of a signal in `/proc/PID/status`.
fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

fn mask(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

extern "C" fn do_nothing(_: libc::c_int) {}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the handlers of these tests only use atomics and getpid.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(
            libc::sigaction(signal, &raw const action, ptr::null_mut()),
            0
        );
    }
}

#[test]
fn a_child_blocks_and_handles_nothing_and_ignores_what_its_parent_ignores() {
    in_own_process(
        "a_child_blocks_and_handles_nothing_and_ignores_what_its_parent_ignores",
        || {
            SigSet::all().thread_block().unwrap();
            handle(libc::SIGUSR1, do_nothing);
            common::ignore(libc::SIGHUP);
            let status = status_of(|_| {});
            assert_eq!(mask(&status["SigBlk"]), 0);
            assert_eq!(mask(&status["SigCgt"]), 0);
            let ignored = mask(&status["SigIgn"]);
            assert_ne!(ignored & bit(libc::SIGHUP), 0);
            // Rust's runtime ignores it.
            assert_eq!(ignored & bit(libc::SIGPIPE), 0);
        },
    );
}

#[test]
fn ignored_signals_are_reset_on_request() {
    in_own_process("ignored_signals_are_reset_on_request", || {
        common::ignore(libc::SIGHUP);
        common::ignore(libc::SIGRTMAX());
        let status = status_of(|command| {
            command.reset_ignored_signals(true);
        });
        assert_eq!(mask(&status["SigIgn"]), 0);
    });
}

#[test]
fn the_mask_is_inherited_on_request() {
    in_own_process("the_mask_is_inherited_on_request", || {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR2);
        blocked.thread_set_mask().unwrap();
        let inherit = |command: &mut Command| {
            command.inherit_signal_mask(true);
        };
        let status = status_of(inherit);
        assert_eq!(mask(&status["SigBlk"]), bit(libc::SIGUSR2));
        let status = status_of(|command| {
            inherit(command);
            // SAFETY: the closure does nothing.
            unsafe { command.pre_exec(|| Ok(())) };
        });
        assert_eq!(mask(&status["SigBlk"]), bit(libc::SIGUSR2));
    });
}

#[test]
fn the_parent_keeps_its_mask_and_its_handlers() {
    in_own_process("the_parent_keeps_its_mask_and_its_handlers", || {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR2);
        blocked.thread_set_mask().unwrap();
        handle(libc::SIGUSR1, do_nothing);
        let before = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(Command::new("/bin/true").status().unwrap().success());
        Command::new("/nonexistent").spawn().unwrap_err();
        let after = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        for key in ["SigBlk", "SigIgn", "SigCgt"] {
            let line = |text: &str| {
                let line = text.lines().find(|line| line.starts_with(key));
                line.unwrap().to_owned()
            };
            assert_eq!(line(&before), line(&after));
        }
    });
}

static PARENT: AtomicU32 = AtomicU32::new(0);
static HANDLED: AtomicUsize = AtomicUsize::new(0);
/// The writing end of a pipe, which a child has too, whether or not it shares memory.
static ALARM: AtomicI32 = AtomicI32::new(-1);

extern "C" fn count(_: libc::c_int) {
    if process::id() == PARENT.load(Ordering::Relaxed) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    } else {
        // SAFETY: the buffer has one byte.
        unsafe { libc::write(ALARM.load(Ordering::Relaxed), [0_u8].as_ptr().cast(), 1) };
    }
}

#[test]
fn no_handler_of_the_parent_runs_in_a_child() {
    in_own_process("no_handler_of_the_parent_runs_in_a_child", || {
        spawn_in_a_storm_of_signals(|_| {});
    });
}

#[test]
fn no_handler_of_the_parent_runs_in_a_child_of_an_older_kernel() {
    in_own_process(
        "no_handler_of_the_parent_runs_in_a_child_of_an_older_kernel",
        || {
            refuse(&[Refuse {
                call: libc::SYS_clone3,
                when: When::Always,
                with: Errno::ENOSYS,
            }]);
            spawn_in_a_storm_of_signals(|_| {});
        },
    );
}

#[test]
fn no_handler_of_the_parent_runs_in_a_forked_child() {
    in_own_process("no_handler_of_the_parent_runs_in_a_forked_child", || {
        spawn_in_a_storm_of_signals(|command| {
            // SAFETY: the closure does nothing.
            unsafe { command.pre_exec(|| Ok(())) };
        });
    });
}

fn spawn_in_a_storm_of_signals(set_up: impl Fn(&mut Command)) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    ALARM.store(writer.as_raw_fd(), Ordering::Relaxed);
    PARENT.store(process::id(), Ordering::Relaxed);
    // SAFETY: makes this process the leader of a group, to which its children belong.
    unsafe { libc::setpgid(0, 0) };
    // Its default action is to be ignored, so it does not kill the children.
    handle(libc::SIGURG, count);
    let storm = Repeat::start(|| {
        // SAFETY: signals the own process group.
        unsafe { libc::kill(0, libc::SIGURG) };
    });
    for program in ["/bin/true", "/nonexistent"].repeat(150) {
        let mut command = Command::new(program);
        set_up(&mut command);
        assert_eq!(command.status().is_ok(), program == "/bin/true");
    }
    drop(storm);
    assert!(HANDLED.load(Ordering::Relaxed) > 0);
    drop(writer);
    let mut alarms = Vec::new();
    File::from(reader).read_to_end(&mut alarms).unwrap();
    assert_eq!(alarms.len(), 0, "handlers that ran in a child");
}
