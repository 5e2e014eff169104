//! Users and groups.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;

use common::own_process::in_own_process;
use common::{OTHER_USER, is_root, skip, status_of};
use nix::libc;
use pidfd_spawn::{Command, Step};

/// Sets up a command.
type SetUp = fn(&mut Command);

#[test]
fn user_and_groups_are_set() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    let status = status_of(|command| {
        command
            .uid(OTHER_USER)
            .gid(OTHER_USER + 1)
            .groups(&[OTHER_USER + 2, OTHER_USER + 3]);
    });
    let ids = |id: u32| vec![id.to_string(); 4].join("\t");
    assert_eq!(status["Uid"], ids(OTHER_USER));
    assert_eq!(status["Gid"], ids(OTHER_USER + 1));
    assert_eq!(
        status["Groups"],
        format!("{} {}", OTHER_USER + 2, OTHER_USER + 3)
    );
}

#[test]
fn a_user_has_no_groups_of_the_parent() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    in_own_process("a_user_has_no_groups_of_the_parent", || {
        let groups = [nix::unistd::Gid::from_raw(OTHER_USER)];
        nix::unistd::setgroups(&groups).unwrap();
        assert_eq!(status_of(|_| {})["Groups"], OTHER_USER.to_string());
        let status = status_of(|command| {
            command.uid(OTHER_USER);
        });
        assert_eq!(status["Groups"], "");
    });
}

#[test]
fn only_the_child_changes() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    in_own_process("only_the_child_changes", || {
        // Other threads must keep their credentials too.
        let other = std::thread::spawn(|| {
            std::thread::park();
            nix::unistd::geteuid()
        });
        let mut command = Command::new("/bin/true");
        command.uid(OTHER_USER).gid(OTHER_USER).groups(&[]);
        assert!(command.status().unwrap().success());
        other.thread().unpark();
        assert!(other.join().unwrap().is_root());
        assert!(is_root());
    });
}

#[test]
fn the_working_directory_must_be_accessible_for_the_user() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = Command::new("/bin/true");
    command.current_dir(dir.path());
    assert!(command.status().unwrap().success());
    let error = command.uid(OTHER_USER).spawn().unwrap_err();
    assert_eq!(error.step(), Step::CurrentDir);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn an_unprivileged_caller_gets_the_failing_step() {
    in_own_process("an_unprivileged_caller_gets_the_failing_step", || {
        if is_root() {
            let id = nix::unistd::Uid::from_raw(OTHER_USER);
            nix::unistd::setuid(id).unwrap();
        }
        let cases: [(SetUp, Step); 3] = [
            (|command| _ = command.uid(0), Step::Uid),
            (|command| _ = command.gid(OTHER_USER + 1), Step::Gid),
            (|command| _ = command.groups(&[OTHER_USER]), Step::Groups),
        ];
        for (set_up, step) in cases {
            let mut command = Command::new("/bin/true");
            set_up(&mut command);
            let error = command.spawn().unwrap_err();
            assert_eq!(error.step(), step);
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
    });
}
