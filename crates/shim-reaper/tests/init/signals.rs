//! Signals are forwarded, and the program has those of the caller.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::Signal::{self, SIGPWR, SIGTERM, SIGUSR1, SIGUSR2};
use nix::sys::signal::{SigHandler, SigSet, signal};

use crate::program::{Place, Started};

#[test]
fn every_signal_that_can_be_caught_is_forwarded() {
    // glibc keeps 32 and 33 for itself.
    let real_time = 34..=64;
    let caught = |signal: &i32| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD].contains(signal);
    for place in Place::with_init() {
        let mut started = place.start("print_signals");
        assert_eq!(started.line(), "ready");
        let init = i32::try_from(started.init()).unwrap();
        for signal in (1..=31).chain(real_time.clone()).filter(caught) {
            // SAFETY: takes integers.
            assert_eq!(unsafe { libc::kill(init, signal) }, 0);
            assert_eq!(started.line(), signal.to_string(), "{place:?}");
        }
    }
}

#[test]
fn sigchld_is_not_forwarded() {
    for place in Place::with_init() {
        let mut started = place.start("print_signals");
        started.line();
        started.signal_init(Signal::SIGCHLD);
        // Of several pending signals, the one with the lowest number comes first.
        started.signal_init(SIGPWR);
        assert_eq!(started.line(), (SIGPWR as i32).to_string(), "{place:?}");
    }
}

/// Returns a program that does `on_term` after SIGTERM, and has a child in its process group. The child
/// reports SIGTERM or SIGPWR, and exits.
fn with_child(on_term: &str) -> String {
    format!(
        "trap '{on_term}; wait $!; echo program; exit' TERM
        sh -c 'trap \"echo TERM; exit\" TERM; trap \"echo PWR; exit\" PWR
            echo ready; while :; do sleep 0.01; done' &
        while :; do sleep 0.01; done"
    )
}

#[test]
fn a_signal_is_forwarded_to_the_program_alone() {
    for place in Place::with_init() {
        let mut started = place.start(&with_child("kill -PWR $!"));
        started.line();
        started.signal_init(SIGTERM);
        let (_, lines) = started.end();
        assert_eq!(lines, ["PWR", "program"], "{place:?}");
    }
}

#[test]
fn a_signal_is_forwarded_to_the_group_of_the_program() {
    for place in Place::with_init() {
        let mut started = place.start_with(&with_child(":"), "group");
        started.line();
        started.signal_init(SIGTERM);
        let (_, lines) = started.end();
        assert_eq!(lines, ["TERM", "program"], "{place:?}");
    }
}

/// Makes the process ignore SIGUSR1, SIGTTOU and SIGCHLD, and block SIGUSR2.
fn with_signals(mut command: Command) -> Command {
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(|| {
            for ignored in [SIGUSR1, Signal::SIGTTOU, Signal::SIGCHLD] {
                signal(ignored, SigHandler::SigIgn)?;
            }
            let mut blocked = SigSet::empty();
            blocked.add(SIGUSR2);
            Ok(blocked.thread_set_mask()?)
        });
    }
    command
}

#[test]
fn the_program_has_the_signal_mask_and_dispositions_of_the_caller() {
    let script = "exec grep -E '^Sig(Blk|Ign|Cgt|Pnd)' /proc/self/status";
    let run = |place: Place| {
        let program = Started::new(place, with_signals(place.command(script, "")));
        program.end()
    };
    // Not in the container, because unshare(1) restores SIGCHLD.
    let (status, lines) = run(Place::Service);
    assert!(status.success());
    assert_eq!(lines, run(Place::Bare).1);
}
