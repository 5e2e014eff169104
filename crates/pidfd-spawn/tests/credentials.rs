//! Users and groups.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::own_process::in_own_process;
use common::{OTHER_USER, is_root, skip, status_of, stdout_of};
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
fn another_user_has_no_capabilities_of_the_parent() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    in_own_process("another_user_has_no_capabilities_of_the_parent", || {
        make_ambient(CAP_KILL);
        let set_uid = |command: &mut Command| {
            command.uid(OTHER_USER);
        };
        assert_eq!(capabilities(status_of(|_| {}), "CapAmb"), 1 << CAP_KILL);
        let status = status_of(set_uid);
        for set in ["CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(capabilities(status.clone(), set), 0, "{set}");
        }
        assert_eq!(capabilities(status, "CapInh"), 1 << CAP_KILL);

        // SAFETY: changes an attribute of this thread.
        let set = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) };
        assert_eq!(set, 0);
        assert_eq!(capabilities(status_of(set_uid), "CapAmb"), 1 << CAP_KILL);
    });
}

#[test]
fn no_new_privs_holds_for_a_program_with_capabilities() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let cat = dir.path().join("cat");
    // Not in this process: a file that a fork of another test has open for writing cannot be executed.
    let mut cp = Command::new("cp");
    assert!(cp.arg("/bin/cat").arg(&cat).status().unwrap().success());
    if let Err(error) = set_file_capability(&cat, CAP_KILL) {
        return eprintln!("SKIPPED: the file system does not have capabilities: {error}");
    }
    for (no_new_privs, expected) in [(false, 1 << CAP_KILL), (true, 0)] {
        let mut command = Command::new(&cat);
        command.arg("/proc/self/status").uid(OTHER_USER);
        let status = stdout_of(command.no_new_privs(no_new_privs));
        let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        assert_eq!(u64::from_str_radix(line.unwrap().trim(), 16), Ok(expected));
    }
}

const CAP_KILL: u32 = 5;
const SECBIT_NO_SETUID_FIXUP: libc::c_int = 1 << 2;

fn capabilities(status: HashMap<String, String>, set: &str) -> u64 {
    u64::from_str_radix(&status[set], 16).unwrap()
}

/// Lets every program that this thread executes have a capability.
fn make_ambient(capability: u32) {
    // The version, and the calling thread.
    let header = [0x2008_0522_u32, 0];
    // Effective, permitted and inheritable: capabilities 0 to 31, then 32 to 63.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: the pointers are valid for the header and the sets.
    unsafe {
        libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        sets[0][2] |= 1 << capability;
        let set = libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr());
        assert_eq!(set, 0);
        let (option, raise) = (libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE);
        assert_eq!(libc::prctl(option, raise, capability, 0, 0), 0);
    }
}

fn set_file_capability(path: &Path, capability: u32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // The second version with the effective bit; permitted and inheritable, low and high.
    let value = [0x0200_0001, 1 << capability, 0, 0, 0_u32];
    let name = c"security.capability";
    // SAFETY: the strings and the value are valid for the call.
    let set = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            size_of_val(&value),
            0,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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

/// To the kernel it means "unchanged" in some system calls.
#[test]
fn no_user_or_group_has_the_highest_number() {
    let cases: [(SetUp, Step); 2] = [
        (|command| _ = command.uid(u32::MAX), Step::Uid),
        (|command| _ = command.gid(u32::MAX), Step::Gid),
    ];
    for (set_up, step) in cases {
        for fork in [false, true] {
            let mut command = Command::new("/bin/true");
            set_up(&mut command);
            if fork {
                // SAFETY: the closure does nothing.
                unsafe { command.pre_exec(|| Ok(())) };
            }
            let error = command.spawn().unwrap_err();
            assert_eq!(
                (error.step(), error.raw_os_error()),
                (step, Some(libc::EINVAL))
            );
        }
    }
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
