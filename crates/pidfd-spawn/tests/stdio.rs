//! The standard streams of a child.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};

use common::own_process::in_own_process;
use common::{shell, stdout_of};
use nix::libc;
use pidfd_spawn::{Command, Stdio};

#[test]
fn pipes_connect_the_child_to_its_parent() {
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(child.stderr.is_none());
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let mut received = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut received)
        .unwrap();
    assert_eq!(received, "hello");
    assert!(child.wait().unwrap().success());
}

#[test]
fn output_reads_both_streams_although_each_exceeds_a_pipe() {
    let output = shell("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; echo end")
        .output()
        .unwrap();
    assert_eq!(output.stdout.len(), 300_004);
    assert_eq!(output.stderr.len(), 300_000);
}

#[test]
fn output_reads_the_stream_that_ends_last() {
    let output = shell("exec 2>&-; sleep 0.1; echo late").output().unwrap();
    assert_eq!(output.stdout, b"late\n");
}

#[test]
fn null_is_empty_and_swallows() {
    let mut command = shell("cat; echo lost");
    let output = command.stdout(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"");
}

#[test]
fn the_input_of_output_is_null_by_default() {
    assert_eq!(
        stdout_of(&mut shell("readlink /proc/self/fd/0")),
        "/dev/null"
    );
}

#[test]
fn files_and_ends_of_pipes_are_streams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let mut first = shell("echo one; echo two")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = Command::new("tail")
        .args(["-n", "1"])
        .stdin(first.stdout.take().unwrap())
        .stdout(File::create(&path).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(first.wait().unwrap().success());
    assert_eq!(fs::read_to_string(path).unwrap(), "two\n");
}

#[test]
fn a_command_can_be_spawned_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let mut command = shell("echo again");
    command.stdout(File::create(&path).unwrap());
    for _ in 0..3 {
        assert!(command.status().unwrap().success());
    }
    assert_eq!(fs::read_to_string(path).unwrap(), "again\n".repeat(3));
}

#[test]
fn the_streams_of_the_parent_can_be_exchanged() {
    in_own_process("the_streams_of_the_parent_can_be_exchanged", || {
        let dir = tempfile::tempdir().unwrap();
        let (out, err) = (dir.path().join("out"), dir.path().join("err"));
        replace_streams(&File::create(&out).unwrap(), &File::create(&err).unwrap());

        let status = shell("echo to-out; echo to-err >&2")
            .stdout(std::io::stderr())
            .stderr(std::io::stdout())
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(fs::read_to_string(out).unwrap(), "to-err\n");
        assert_eq!(fs::read_to_string(err).unwrap(), "to-out\n");
    });
}

fn replace_streams(out: &File, err: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: this process has nothing to write to its streams.
    unsafe {
        libc::dup2(out.as_raw_fd(), 1);
        libc::dup2(err.as_raw_fd(), 2);
    }
}

#[test]
fn pipes_work_if_the_streams_of_the_parent_are_closed() {
    in_own_process("pipes_work_if_the_streams_of_the_parent_are_closed", || {
        // SAFETY: this process does not use its streams until they are restored.
        let saved = unsafe {
            let saved = [0, 1, 2].map(|stream| libc::fcntl(stream, libc::F_DUPFD_CLOEXEC, 100));
            for stream in 0..3 {
                libc::close(stream);
            }
            saved
        };
        // The ends of the new pipes get the numbers 0 to 2.
        let output = shell("cat; echo to-out; echo to-err >&2").output();
        for (stream, fd) in (0..).zip(saved) {
            // SAFETY: restores the streams.
            unsafe { libc::dup2(fd, stream) };
        }
        let output = output.unwrap();
        assert_eq!(output.stdout, b"to-out\n");
        assert_eq!(output.stderr, b"to-err\n");
    });
}
