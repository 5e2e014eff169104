//! The end of the program, and of the init.

use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal::{SIGCHLD, SIGKILL};
use nix::sys::signal::{SigHandler, signal};

use crate::common::{eventually_blocking, is_gone, is_zombie, kill};
use crate::program::{Place, Started, children};

#[test]
fn the_init_ends_with_the_exit_code_of_the_program() {
    for place in Place::with_init() {
        for code in [0, 1, 42, 255] {
            let program = place.start(&format!("exit {code}"));
            assert_eq!(program.code(), code, "{place:?}");
        }
    }
}

#[test]
fn the_init_ends_with_128_and_the_signal_that_killed_the_program() {
    for place in Place::with_init() {
        // The last is the first real-time signal.
        for signal in [6, 9, 11, 15, 34] {
            let program = place.start(&format!("kill -{signal} $$"));
            assert_eq!(program.code(), 128 + signal, "{place:?}");
        }
    }
}

#[test]
fn a_program_that_is_killed_ends_the_init() {
    for place in Place::with_init() {
        let mut program = place.start("echo ready; exec sleep 1000");
        program.line();
        kill(program.program(), SIGKILL);
        assert_eq!(program.code(), 137, "{place:?}");
    }
}

#[test]
fn the_program_dies_with_the_init() {
    for place in Place::with_init() {
        let mut started = place.start("echo ready; exec sleep 1000");
        started.line();
        let program = started.program();
        started.signal_init(SIGKILL);
        eventually_blocking("the program is killed", || {
            is_gone(program) || is_zombie(program)
        });
    }
}

#[test]
fn the_status_of_a_child_of_the_program_stays_with_the_program() {
    for place in Place::with_init() {
        let program = place.start("sh -c 'exit 7' & wait $!; exit $?");
        assert_eq!(program.code(), 7, "{place:?}");
    }
}

#[test]
fn the_exit_code_is_known_although_the_caller_ignores_sigchld() {
    // Not in the container, because unshare(1) restores SIGCHLD.
    let mut command = Place::Service.command("exit 6", "");
    // SAFETY: the closure makes one system call.
    unsafe {
        command.pre_exec(|| Ok(signal(SIGCHLD, SigHandler::SigIgn).map(drop)?));
    }
    assert_eq!(Started::new(Place::Service, command).code(), 6);
}

#[test]
fn remaining_processes_are_killed_with_a_container() {
    for place in Place::with_init() {
        let mut started = place.start("sleep 1000 >/dev/null & echo ready; read line; exit 3");
        started.line();
        let orphan = children(started.program())[0];
        drop(started.child.stdin.take());
        assert_eq!(started.code(), 3, "{place:?}");
        match place {
            Place::Container => assert!(is_gone(orphan)),
            _ => kill(orphan, SIGKILL),
        }
    }
}

#[test]
fn remaining_processes_are_stopped_with_sigterm() {
    let script =
        "sh -c 'trap \"echo stopped; exit\" TERM; echo ready; while :; do sleep 0.01; done' &
        read line; exit 3";
    for place in Place::with_init() {
        let mut program = place.start_with(script, "stop-patiently");
        program.line();
        drop(program.child.stdin.take());
        let (status, lines) = program.end();
        assert_eq!(status.code(), Some(3), "{place:?}");
        assert_eq!(lines, ["stopped"], "{place:?}");
    }
}

#[test]
fn remaining_processes_that_are_stopped_handle_sigterm() {
    let script = "sh -c 'sleep 1000 & kill -STOP $!; echo ready'; read line; exit 3";
    for place in Place::with_init() {
        let mut started = place.start_with(script, "stop-patiently");
        started.line();
        drop(started.child.stdin.take());
        eventually_blocking("the init ends", || {
            started.child.try_wait().unwrap().is_some()
        });
        assert_eq!(started.code(), 3, "{place:?}");
    }
}

#[test]
fn remaining_processes_that_ignore_sigterm_are_killed() {
    // The orphan has a child, which is reparented to the init when it is killed.
    let script = "trap '' TERM; sh -c 'sleep 1000 & echo ready; wait' & read line; exit 3";
    for place in Place::with_init() {
        let mut started = place.start_with(script, "stop");
        started.line();
        let orphan = children(started.program())[0];
        let grandchild = children(orphan)[0];
        drop(started.child.stdin.take());
        assert_eq!(started.code(), 3, "{place:?}");
        assert!(is_gone(orphan) && is_gone(grandchild), "{place:?}");
    }
}
