//! The environment and the arguments of a child.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::ffi::OsStr;
use std::path::Path;

use common::{shell, stdout_of};
use pidfd_spawn::Command;

#[test]
fn the_environment_is_inherited() {
    let path = std::env::var("PATH").unwrap();
    assert_eq!(stdout_of(&mut shell("echo $PATH")), path);
}

#[test]
fn variables_are_set_and_removed() {
    let mut command = Command::new("/usr/bin/env");
    command
        .env_clear()
        .env("A", "1")
        .envs([("B", "2"), ("C", "3=3")])
        .env("A", "4")
        .env_remove("B");
    assert_eq!(stdout_of(&mut command), "A=4\nC=3=3");

    let mut command = Command::new("/usr/bin/env");
    command.env_remove("PATH").env("NEW", "x");
    let lines = stdout_of(&mut command);
    assert!(lines.lines().any(|line| line == "NEW=x"), "{lines}");
    assert!(
        !lines.lines().any(|line| line.starts_with("PATH=")),
        "{lines}"
    );
}

#[test]
fn arguments_are_passed_as_they_are() {
    let mut command = shell("printf '%s|' \"$0\" \"$@\"");
    command.arg("zero").args(["", "a b", "$x", "ü\n"]);
    assert_eq!(stdout_of(&mut command), "zero||a b|$x|ü\n|");
}

#[test]
fn argument_0_is_the_program_unless_it_is_set() {
    let mut command = Command::new("sh");
    command.args(["-c", "tr '\\0' ' ' < /proc/$$/cmdline; true"]);
    assert!(stdout_of(&mut command).starts_with("sh -c"));
    command.arg0("other");
    assert!(stdout_of(&mut command).starts_with("other -c"));
}

#[test]
fn another_file_is_executed_in_place_of_the_program() {
    let mut command = Command::new("/nonexistent");
    command.args(["-c", "tr '\\0' ' ' < /proc/$$/cmdline; true"]);
    command.executable("sh");
    assert!(stdout_of(&mut command).starts_with("/nonexistent -c"));
}

#[test]
fn the_working_directory_is_set() {
    let mut command = Command::new("/bin/pwd");
    command.current_dir("/proc");
    assert_eq!(stdout_of(&mut command), "/proc");
}

#[test]
fn accessors_return_what_was_set() {
    let mut command = Command::new("program");
    command
        .arg0("zero")
        .args(["a", "b"])
        .env("SET", "1")
        .env_remove("REMOVED")
        .current_dir("/tmp");
    assert_eq!(command.get_program(), "program");
    assert_eq!(command.get_args().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        command.get_envs().collect::<Vec<_>>(),
        [
            (OsStr::new("REMOVED"), None),
            (OsStr::new("SET"), Some(OsStr::new("1"))),
        ]
    );
    assert_eq!(command.get_current_dir(), Some(Path::new("/tmp")));
}
