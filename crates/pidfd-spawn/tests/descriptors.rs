//! Descriptors with chosen numbers.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, RawFd};

use common::own_process::in_own_process;
use common::stdout_of;
use nix::libc;
use pidfd_spawn::{Command, Stdio, Step};

/// A file that contains `text`.
fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

/// A shell that prints the contents of these descriptors.
fn reads(numbers: &[RawFd]) -> Command {
    // By way of /proc, because a shell knows only descriptors up to 9.
    let files = numbers
        .iter()
        .map(|number| format!("/proc/self/fd/{number}"));
    let mut command = Command::new("/bin/cat");
    command.args(files);
    command
}

#[test]
fn a_descriptor_gets_its_number() {
    for number in [3, 9, 200] {
        assert_eq!(stdout_of(reads(&[number]).fd(number, file("x"))), "x");
    }
}

#[test]
fn descriptors_can_take_the_numbers_of_each_other() {
    let files: Vec<File> = (0..5).map(|i| file(&i.to_string())).collect();
    let mut numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.rotate_left(1);
    let mut command = reads(&numbers);
    for (number, file) in numbers.iter().zip(files) {
        command.fd(*number, file);
    }
    assert_eq!(stdout_of(&mut command), "01234");
}

#[test]
fn a_descriptor_can_keep_its_number() {
    let file = file("kept");
    let number = file.as_raw_fd();
    assert_eq!(stdout_of(reads(&[number]).fd(number, file)), "kept");
}

#[test]
fn the_last_descriptor_for_a_number_wins() {
    let mut command = reads(&[7]);
    command.fd(7, file("first")).fd(7, file("second"));
    assert_eq!(stdout_of(&mut command), "second");
}

#[test]
fn a_descriptor_replaces_a_standard_stream() {
    let mut command = Command::new("/bin/cat");
    command.fd(0, file("input"));
    assert_eq!(stdout_of(&mut command), "input");

    let mut out = tempfile::tempfile().unwrap();
    let mut command = Command::new("/bin/echo");
    command.arg("output").fd(1, out.try_clone().unwrap());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    assert!(child.stdout.is_none());
    assert!(child.wait().unwrap().success());
    let mut written = String::new();
    out.seek(SeekFrom::Start(0)).unwrap();
    out.read_to_string(&mut written).unwrap();
    assert_eq!(written, "output\n");
}

#[test]
fn a_child_inherits_nothing_else() {
    in_own_process("a_child_inherits_nothing_else", || {
        let mut expected = inheritable();
        let mut command = Command::new("/bin/ls");
        command.args(["-l", "/proc/self/fd"]);
        for number in 3..9 {
            command.fd(number, file(""));
            expected.insert(number);
        }
        let inherited: BTreeSet<RawFd> = stdout_of(&mut command)
            .lines()
            // ls itself opens the directory.
            .filter(|line| line.contains(" -> ") && !line.ends_with("/fd"))
            .map(|line| line.split(" -> ").next().unwrap())
            .map(|line| line.split(' ').next_back().unwrap().parse().unwrap())
            .collect();
        assert_eq!(inherited, expected);
    });
}

/// The descriptors of this process that are not close-on-exec.
fn inheritable() -> BTreeSet<RawFd> {
    (0..1024)
        // SAFETY: changes nothing.
        .filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } == 0)
        .collect()
}

#[test]
fn an_impossible_number_is_an_error_of_its_step() {
    for number in [-1, RawFd::MAX] {
        let error = reads(&[]).fd(number, file("")).spawn().unwrap_err();
        assert_eq!(error.step(), Step::Descriptors);
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
