//! A child that shares the memory of its parent until it executes its program.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process;
use std::thread;

use common::own_process::in_own_process;
use common::{OTHER_USER, eventually, is_root, own_children, skip, write_faults_after};
use nix::libc;
use pidfd_spawn::Command;

#[test]
fn the_memory_of_a_large_parent_is_not_copied() {
    in_own_process("the_memory_of_a_large_parent_is_not_copied", || {
        const PAGES: usize = 32 * 1024;
        let faults = write_faults_after(PAGES, || {
            let mut command = Command::new("/bin/true");
            if is_root() {
                command.uid(OTHER_USER);
            }
            assert!(command.status().unwrap().success());
        });
        assert!(faults < PAGES / 4, "{faults} page faults");
    });
}

#[test]
fn another_user_cannot_read_memory_that_its_child_shares() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    in_own_process(
        "another_user_cannot_read_memory_that_its_child_shares",
        || {
            let dir = tempfile::tempdir().unwrap();
            fs::set_permissions(dir.path(), world_readable()).unwrap();
            let program = dir.path().join("true");
            fs::copy("/bin/true", &program).unwrap();
            // An exec blocks while another process holds this lease. The holder gets a signal.
            common::ignore(libc::SIGIO);
            let file = File::open(&program).unwrap();
            let lease = |kind: libc::c_int| {
                // SAFETY: changes the lease of an open file.
                let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
                assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
            };
            lease(libc::F_WRLCK);

            let spawner = thread::spawn(move || {
                let mut command = Command::new(program);
                command.uid(OTHER_USER).gid(OTHER_USER).status().unwrap()
            });
            let mut child = 0;
            eventually("the child belongs to the other user", || {
                child = own_children().first().copied().unwrap_or_default();
                is_owned_by_other_user(child)
            });
            assert!(shares_memory(child));
            assert!(!can_other_user_read_memory(child));
            // An exec wakes the parent, which restores the attribute, before it leaves the memory.
            // SAFETY: changes an attribute of this process.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
            assert!(!can_other_user_read_memory(child));

            // The end of another spawn must not make the memory dumpable.
            let mut command = Command::new("/bin/true");
            assert!(command.uid(OTHER_USER).status().unwrap().success());
            assert!(!is_dumpable());
            assert!(!can_other_user_read_memory(child));

            lease(libc::F_UNLCK);
            assert!(spawner.join().unwrap().success());
            assert!(is_dumpable());
        },
    );
}

fn is_dumpable() -> bool {
    // SAFETY: changes nothing.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) == 1 }
}

fn world_readable() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

fn is_owned_by_other_user(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.contains(&format!("Uid:\t{OTHER_USER}\t"))
}

fn shares_memory(pid: u32) -> bool {
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    program(pid) == program(process::id())
}

fn can_other_user_read_memory(pid: u32) -> bool {
    // Not with this crate, which would change the attribute.
    let mut command = process::Command::new("/bin/sh");
    command
        .args(["-c", "exec 3< \"$0\""])
        .arg(format!("/proc/{pid}/mem"))
        .uid(OTHER_USER)
        .gid(OTHER_USER);
    assert!(Path::new(&format!("/proc/{pid}/mem")).exists());
    command.output().unwrap().status.success()
}
