//! The program `vmm-agent` as an ordinary process, and as pid 1 of a pid namespace.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::Host;
use common::guest::eventually;
use nix::unistd::geteuid;
use pidfd_spawn::{Child, Command};
use vmm_protocol::Ending;
use vmm_protocol::frames::{HostMessage, PayloadMessage};

const AGENT: &str = env!("CARGO_BIN_EXE_vmm-agent");

fn start(program: &[&str]) -> (Child, Host) {
    let (stream, other) = UnixStream::pair().unwrap();
    let child = Command::new(program[0])
        .args(&program[1..])
        .stdin(OwnedFd::from(other))
        .parent_death_signal(nix::libc::SIGKILL)
        .spawn()
        .unwrap();
    (child, Host::over(stream))
}

fn started(host: &mut Host, stream: u32, command: &[&str]) -> u32 {
    host.exec(stream, command);
    match host.receive().message {
        PayloadMessage::Started { pid, .. } => pid,
        message => panic!("{message:?}"),
    }
}

#[test]
fn an_agent_serves_its_stdin_and_its_commands_die_with_it() {
    let (mut agent, mut host) = start(&[AGENT, "--stdin"]);
    host.send_garbage(b"not a frame, VM");
    let outcome = host.run(1, &["sh", "-c", "echo $HOME; exit 42"]);
    assert_eq!(outcome.text(), "/root\n");
    assert_eq!(*outcome.ending(), Ending::Exited { code: 42 });

    let pid = started(&mut host, 1, &["sleep", "1000"]);
    drop(host);
    assert!(eventually(|| agent.try_wait().unwrap()).success());
    let dir = format!("/proc/{pid}");
    eventually(|| (!Path::new(&dir).exists()).then_some(()));
}

#[test]
fn an_agent_that_is_not_pid_1_does_not_prepare_a_guest() {
    assert_refuses(&mut Command::new(AGENT));
}

#[test]
fn pid_1_of_a_namespace_does_not_prepare_a_guest() {
    if is_skipped() {
        return;
    }
    assert_refuses(Command::new(UNSHARE[0]).args(&UNSHARE[1..]).arg(AGENT));
}

fn assert_refuses(command: &mut Command) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("--stdin"), "{message}");
}

/// Runs a program as pid 1 of a pid namespace.
const UNSHARE: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];

/// Returns true, after a message, if this process cannot create a pid namespace.
fn is_skipped() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: this needs root, for a pid namespace");
    }
    !is_root
}

#[test]
fn pid_1_of_a_namespace_ends_daemons_that_no_command_waits_for() {
    if is_skipped() {
        return;
    }
    let (mut agent, mut host) = start(&[&UNSHARE[..], &[AGENT, "--stdin"]].concat());
    let daemon = "(trap '' TERM; exec setsid sleep 1000) >/dev/null 2>&1 & echo $PPID";
    let outcome = host.run(1, &["sh", "-c", daemon]);
    assert_eq!(outcome.text(), "1\n");
    started(&mut host, 1, &["sleep", "1000"]);
    host.send(0, HostMessage::Shutdown { grace_millis: 100 });
    assert_eq!(host.receive().message, PayloadMessage::Done);
    assert_eq!(*host.finish(1).ending(), Ending::Signaled { signal: 15 });
    assert!(host.has_hung_up());
    assert!(eventually(|| agent.try_wait().unwrap()).success());
}
