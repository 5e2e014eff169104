//! Process groups and sessions.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use common::stat_of;
use nix::libc;
use nix::pty::openpty;
use nix::unistd::getpgrp;
use pidfd_spawn::{Command, Stdio, Step};

const PID: usize = 1;
const PROCESS_GROUP: usize = 5;
const SESSION: usize = 6;

#[test]
fn the_process_group_is_inherited_created_or_joined() {
    let stat = stat_of(|_| {});
    assert_eq!(stat[PROCESS_GROUP], getpgrp().to_string());

    let stat = stat_of(|command| {
        command.process_group(0);
    });
    assert_eq!(stat[PROCESS_GROUP], stat[PID]);

    let mut leader = Command::new("sleep")
        .arg("300")
        .process_group(0)
        .spawn()
        .unwrap();
    let group = i32::try_from(leader.id()).unwrap();
    let stat = stat_of(|command| {
        command.process_group(group);
    });
    leader.kill().unwrap();
    leader.wait().unwrap();
    assert_eq!(stat[PROCESS_GROUP], group.to_string());
}

#[test]
fn a_session_is_created() {
    let stat = stat_of(|command| {
        command.setsid(true);
    });
    assert_eq!(stat[SESSION], stat[PID]);
    assert_eq!(stat[PROCESS_GROUP], stat[PID]);
}

#[test]
fn the_group_of_a_session_is_the_new_group() {
    let stat = stat_of(|command| {
        command.process_group(0).setsid(true);
    });
    assert_eq!(stat[SESSION], stat[PID]);
    assert_eq!(stat[PROCESS_GROUP], stat[PID]);
}

#[test]
fn the_stdin_becomes_the_controlling_terminal_of_the_session() {
    let pty = openpty(None, None).unwrap();
    // A process can open /dev/tty only if its session has a terminal, tty(4).
    let open_tty = |controlling: bool| {
        let mut command = Command::new("sh");
        let slave = pty.slave.try_clone().unwrap();
        command
            .args(["-c", ": </dev/tty"])
            .stdin(slave)
            .stderr(Stdio::null());
        command.setsid(true).controlling_terminal(controlling);
        command.status().unwrap().success()
    };
    assert!(open_tty(true));
    assert!(!open_tty(false));
}

#[test]
fn a_stdin_that_is_not_a_terminal_cannot_control_a_session() {
    let mut command = Command::new("/bin/true");
    command
        .stdin(Stdio::null())
        .setsid(true)
        .controlling_terminal(true);
    let error = command.spawn().unwrap_err();
    assert_eq!(error.step(), Step::ControllingTerminal);
    assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
}
