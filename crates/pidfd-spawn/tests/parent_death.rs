//! The signal that a child gets when its parent dies.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::process::Stdio;

use common::own_process::own_process;
use common::{OTHER_USER, children_of, eventually, is_root, state_of};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use pidfd_spawn::Command;

/// Whether a process has ended, reaped or not: its new parent may be slow to reap it.
fn has_ended(pid: u32) -> bool {
    matches!(state_of(pid), None | Some('Z' | 'X'))
}

#[test]
fn a_child_dies_with_its_parent() {
    let command = own_process("a_child_dies_with_its_parent", || {
        let mut command = Command::new("sleep");
        command.arg("300").parent_death_signal(libc::SIGKILL);
        if is_root() {
            // A change of the user clears the setting.
            command.uid(OTHER_USER);
        }
        println!("child {}", command.spawn().unwrap().id());
        std::thread::park();
    });
    let Some(mut command) = command else { return };
    let mut parent = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let child = lines
        .map_while(Result::ok)
        .find_map(|line| {
            line.split_once("child ")
                .map(|(_, pid)| pid.parse().unwrap())
        })
        .unwrap();
    assert!(!has_ended(child));
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("the child has died", || has_ended(child));
}

#[test]
fn a_child_whose_parent_dies_before_it_asks_for_the_signal_dies_too() {
    const DIR: &str = "PIDFD_SPAWN_TEST_DIR";
    let command = own_process(
        "a_child_whose_parent_dies_before_it_asks_for_the_signal_dies_too",
        || {
            // The step before the signal blocks: it opens a named pipe without a reader.
            let dir = File::open(std::env::var_os(DIR).unwrap()).unwrap();
            let mut command = Command::new("sleep");
            command
                .arg("300")
                .cgroup(dir.as_fd().try_clone_to_owned().unwrap())
                .parent_death_signal(libc::SIGKILL);
            let _ = command.spawn();
        },
    );
    let Some(mut command) = command else { return };
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("cgroup.procs");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut parent = command
        .env(DIR, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();

    // The parent's thread is suspended, so it has no other child.
    let mut child = None;
    eventually("the child is born", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", parent.id())).unwrap();
        child = tasks
            .flat_map(|task| {
                let tid = task.unwrap().file_name().into_string().unwrap();
                children_of(parent.id(), tid.parse().unwrap())
            })
            .next();
        child.is_some()
    });
    let child = child.unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(!has_ended(child));

    let mut written = String::new();
    File::open(&fifo)
        .unwrap()
        .read_to_string(&mut written)
        .unwrap();
    assert_eq!(written, "0");
    eventually("the child has died", || has_ended(child));
}
