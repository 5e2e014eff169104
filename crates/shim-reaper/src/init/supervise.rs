use std::collections::BTreeSet;
use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{self, ExitStatus};
use std::time::{Duration, Instant};

use nix::libc::{SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};
use nix::sys::prctl;
use nix::unistd::{self, Pid};

use super::terminal;
use crate::kernel::children_of;
use crate::stop::KILL_TIMEOUT;
use crate::sys::init as sys;

/// Does the work of the init until the program has ended, and returns the exit code.
pub(super) fn supervise(program: Pid, forward_to_group: bool, stop_grace: Option<Duration>) -> i32 {
    let _ = prctl::set_name(c"init");
    // A file system that is the working directory of a process cannot be unmounted.
    let _ = env::set_current_dir("/");
    // The program does it too. Either way, the group exists before a signal is forwarded to it.
    let _ = unistd::setpgid(program, program);
    // The kernel recycles neither number before this process reaps the program.
    let (pid, group) = (program.as_raw(), -program.as_raw());
    loop {
        match sys::wait_for_signal(None) {
            Some(SIGCHLD) => {
                if let Some(status) = reap(program) {
                    if let Some(grace) = stop_grace {
                        stop_remaining(program, grace);
                    }
                    return shell_code(status);
                }
            }
            // A shell continues its job: puts it into the foreground, and continues the whole group.
            Some(SIGCONT) => {
                terminal::move_foreground(unistd::getpgrp(), program);
                sys::kill(group, SIGCONT);
            }
            // Fails if the program is a zombie, or has changed its user.
            Some(signal) => sys::kill(if forward_to_group { group } else { pid }, signal),
            None => {}
        }
    }
}

/// Reaps all children that have exited. Returns the status of the program if it is among them.
fn reap(program: Pid) -> Option<ExitStatus> {
    let mut exit = None;
    while let Ok(Some((pid, status))) = sys::wait_for_any_child() {
        match status.stopped_signal() {
            None if pid == program => exit = Some(status),
            // The kernel ignores the SIGSTOP if this is pid 1, which no shell waits for.
            Some(SIGTSTP | SIGTTIN | SIGTTOU) if pid == program && terminal::exists() => {
                sys::kill(Pid::this().as_raw(), SIGSTOP);
            }
            _ => {}
        }
    }
    exit
}

/// Ends all children, also those that the kernel reparents to this process meanwhile.
fn stop_remaining(program: Pid, grace: Duration) {
    for (signal, timeout) in [(SIGTERM, grace), (SIGKILL, KILL_TIMEOUT)] {
        let start = Instant::now();
        let mut signalled = BTreeSet::new();
        loop {
            reap(program);
            // Without a list, nothing can be stopped.
            let children = children_of(process::id())
                .ok()
                .flatten()
                .unwrap_or_default();
            if children.is_empty() {
                return;
            }
            for child in children {
                if signalled.insert(child) {
                    sys::kill(child as i32, signal);
                    // A stopped process handles SIGTERM when it continues.
                    sys::kill(child as i32, SIGCONT);
                }
            }
            let Some(left) = timeout.checked_sub(start.elapsed()) else {
                break;
            };
            sys::wait_for_signal(Some(left));
        }
    }
}

fn shell_code(status: ExitStatus) -> i32 {
    let signal = || status.signal().map(|signal| 128 + signal);
    // One of both is known, because the program was not stopped.
    status.code().or_else(signal).unwrap_or(127)
}
