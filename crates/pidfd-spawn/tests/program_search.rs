//! Where a program is found, and the errors if it is not.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::stdout_of;
use nix::libc;
use pidfd_spawn::{Command, SpawnError, Step};

#[test]
fn a_program_is_searched_in_the_path_of_the_child() {
    let dir = tempfile::tempdir().unwrap();
    script(&dir.path().join("only-here"), "#!/bin/sh\necho found\n");
    let mut command = Command::new("only-here");
    command.env("PATH", "/bin:/usr/bin");
    assert_eq!(spawn_error(&mut command).kind(), ErrorKind::NotFound);
    command.env("PATH", format!("/nonexistent:{}", dir.path().display()));
    assert_eq!(stdout_of(&mut command), "found");
}

#[test]
fn without_a_path_the_system_directories_are_searched() {
    let mut command = Command::new("env");
    command.env_clear();
    assert_eq!(stdout_of(&mut command), "");
}

#[test]
fn an_empty_entry_of_the_path_is_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    script(&dir.path().join("here"), "#!/bin/sh\necho found\n");
    for path in ["", ":/nonexistent", "/nonexistent:", "/nonexistent::/bin"] {
        let mut command = Command::new("here");
        command.env("PATH", path).current_dir(dir.path());
        assert_eq!(stdout_of(&mut command), "found", "PATH={path}");
    }
}

#[test]
fn a_relative_path_is_relative_to_the_working_directory_of_the_child() {
    let dir = tempfile::tempdir().unwrap();
    script(&dir.path().join("here"), "#!/bin/sh\necho found\n");
    let mut command = Command::new("./here");
    command.current_dir(dir.path());
    assert_eq!(stdout_of(&mut command), "found");
}

#[test]
fn a_file_that_may_not_be_executed_is_skipped_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("plain")).unwrap();
    let mut command = Command::new("plain");
    command.env("PATH", format!("{}:/nonexistent", dir.path().display()));
    let error = spawn_error(&mut command);
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    assert_eq!(error.step(), Step::Exec);

    let other = tempfile::tempdir().unwrap();
    script(&other.path().join("plain"), "#!/bin/sh\necho found\n");
    command.env(
        "PATH",
        format!("{}:{}", dir.path().display(), other.path().display()),
    );
    assert_eq!(stdout_of(&mut command), "found");
}

#[test]
fn a_script_without_an_interpreter_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    script(&path, "echo hello\n");
    let error = spawn_error(&mut Command::new(&path));
    assert_eq!(error.raw_os_error(), Some(libc::ENOEXEC));
}

#[test]
fn an_empty_program_is_not_found() {
    assert_eq!(
        spawn_error(&mut Command::new("")).kind(),
        ErrorKind::NotFound
    );
}

fn spawn_error(command: &mut Command) -> SpawnError {
    command.spawn().unwrap_err()
}

/// Writes the file in another process: a file that a fork of another test has open for writing
/// cannot be executed.
fn script(path: &Path, text: &str) {
    let mut cp = std::process::Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    cp.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(cp.wait().unwrap().success());
    assert_eq!(
        fs::metadata(path).unwrap().permissions().mode() & 0o777,
        0o755
    );
}
