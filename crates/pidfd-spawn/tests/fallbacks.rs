//! Kernels and sandboxes without the system calls that a spawn prefers.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;

use common::own_process::in_own_process;
use common::seccomp::{Refuse, When, refuse};
use common::{
    OTHER_USER, is_root, own_children, shell, skip, status_of, stdout_of, write_faults_after,
};
use nix::errno::Errno;
use nix::libc;
use pidfd_spawn::{Command, Stdio, Step};

fn without_clone3(errno: Errno) -> Refuse {
    Refuse {
        call: libc::SYS_clone3,
        when: When::Always,
        with: errno,
    }
}

/// Refuses the older system call too, where it has to return a pidfd.
fn without_clone_pidfd(errno: Errno) -> Refuse {
    Refuse {
        call: libc::SYS_clone,
        when: When::FirstHas(libc::CLONE_PIDFD as u32),
        with: errno,
    }
}

#[test]
fn spawns_with_everything() {
    in_own_process("spawns_with_everything", || expect_all(Memory::Shared));
}

#[test]
fn spawns_without_clone3() {
    in_own_process("spawns_without_clone3", || {
        refuse(&[without_clone3(Errno::ENOSYS)]);
        expect_all(Memory::Shared);
    });
}

#[test]
fn spawns_where_a_sandbox_refuses_clone3() {
    in_own_process("spawns_where_a_sandbox_refuses_clone3", || {
        refuse(&[without_clone3(Errno::EPERM)]);
        expect_all(Memory::Shared);
    });
}

#[test]
fn spawns_where_clone3_knows_no_flag() {
    in_own_process("spawns_where_clone3_knows_no_flag", || {
        refuse(&[without_clone3(Errno::EINVAL)]);
        expect_all(Memory::Shared);
    });
}

#[test]
fn spawns_where_no_clone_returns_a_pidfd() {
    in_own_process("spawns_where_no_clone_returns_a_pidfd", || {
        refuse(&[
            without_clone3(Errno::ENOSYS),
            without_clone_pidfd(Errno::EPERM),
        ]);
        expect_all(Memory::Copied);
    });
}

#[test]
fn spawns_where_clone3_is_older_than_control_groups() {
    in_own_process("spawns_where_clone3_is_older_than_control_groups", || {
        refuse(&[without_control_groups(Errno::E2BIG)]);
        expect_all(Memory::Shared);
    });
}

#[test]
fn spawns_where_clone3_refuses_control_groups() {
    in_own_process("spawns_where_clone3_refuses_control_groups", || {
        refuse(&[without_control_groups(Errno::EINVAL)]);
        expect_all(Memory::Shared);
    });
}

/// Refuses `clone3` with the size of its arguments that has the control group.
fn without_control_groups(errno: Errno) -> Refuse {
    Refuse {
        call: libc::SYS_clone3,
        when: When::SecondIs(88),
        with: errno,
    }
}

/// The last thread fails unless it uses what the filters of the others refuse.
#[test]
fn a_filter_of_another_thread_does_not_keep_a_child_from_clone3() {
    const TEST: &str = "a_filter_of_another_thread_does_not_keep_a_child_from_clone3";
    in_own_process(TEST, || {
        let spawn = || assert!(Command::new("/bin/true").status().unwrap().success());
        for errno in [Errno::ENOSYS, Errno::EPERM, Errno::EINVAL] {
            in_thread(&[without_clone3(errno), without_clone_pidfd(errno)], spawn);
        }
        // Also without a fork.
        let without_clone = Refuse {
            call: libc::SYS_clone,
            when: When::Always,
            with: Errno::EAGAIN,
        };
        in_thread(&[without_clone], spawn);
    });
}

#[test]
fn a_filter_of_another_thread_does_not_keep_a_child_from_its_control_group() {
    const TEST: &str = "a_filter_of_another_thread_does_not_keep_a_child_from_its_control_group";
    in_own_process(TEST, || {
        for errno in [Errno::E2BIG, Errno::EINVAL] {
            in_thread(&[without_control_groups(errno)], expect_control_group);
        }
        let without_other_clones = [
            Refuse {
                call: libc::SYS_clone3,
                when: When::SecondIs(64),
                with: Errno::EAGAIN,
            },
            without_clone_pidfd(Errno::EAGAIN),
        ];
        in_thread(&without_other_clones, expect_control_group);
    });
}

/// Calls `run` in a thread whose filter refuses these system calls.
fn in_thread(rules: &[Refuse], run: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            refuse(rules);
            run();
        });
    });
}

#[test]
fn without_any_pidfd_the_step_is_reported() {
    in_own_process("without_any_pidfd_the_step_is_reported", || {
        refuse(&[
            without_clone3(Errno::ENOSYS),
            without_clone_pidfd(Errno::EINVAL),
            Refuse {
                call: libc::SYS_pidfd_open,
                when: When::Always,
                with: Errno::ENOSYS,
            },
        ]);
        let error = Command::new("/bin/true").spawn().unwrap_err();
        assert_eq!(error.step(), Step::Pidfd);
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
        assert_eq!(own_children(), []);
    });
}

#[test]
fn a_shortage_of_processes_is_not_a_missing_feature() {
    in_own_process("a_shortage_of_processes_is_not_a_missing_feature", || {
        refuse(&[
            without_clone3(Errno::EAGAIN),
            Refuse {
                call: libc::SYS_clone,
                when: When::Always,
                with: Errno::EAGAIN,
            },
        ]);
        let error = Command::new("/bin/true").spawn().unwrap_err();
        assert_eq!(error.step(), Step::Clone);
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    });
}

/// Whether a child shares the memory of its parent, or is forked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Shared,
    Copied,
}

/// Expects of every way to create a child what a caller relies on.
fn expect_all(memory: Memory) {
    for _ in 0..2 {
        expect_memory(memory);
        expect_pidfd();
        expect_failures();
        expect_reset_signals();
        expect_control_group();
        expect_descriptors();
        expect_user();
    }
    assert_eq!(own_children(), []);
}

fn expect_memory(memory: Memory) {
    const PAGES: usize = 2_000;
    let faults = write_faults_after(PAGES, || {
        assert!(Command::new("/bin/true").status().unwrap().success());
    });
    assert_eq!(faults > PAGES / 2, memory == Memory::Copied, "{faults}");
}

fn expect_pidfd() {
    let mut command = shell("read line; exit 7");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let info = format!("/proc/self/fdinfo/{}", child.pidfd().as_raw_fd());
    let info = fs::read_to_string(info).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:\t"));
    assert_eq!(pid, Some(&*child.id().to_string()));
    // SAFETY: changes nothing.
    let flags = unsafe { libc::fcntl(child.pidfd().as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags, libc::FD_CLOEXEC);
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

fn expect_failures() {
    let error = Command::new("/nonexistent").spawn().unwrap_err();
    assert_eq!(error.step(), Step::Exec);
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let mut command = Command::new("/bin/true");
    let error = command.current_dir("/nonexistent").spawn().unwrap_err();
    assert_eq!(error.step(), Step::CurrentDir);
}

extern "C" fn do_nothing(_: libc::c_int) {}

fn expect_reset_signals() {
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, do_nothing as *const () as usize) };
    let status = status_of(|_| {});
    for key in ["SigBlk", "SigCgt"] {
        assert_eq!(status[key], "0000000000000000", "{key}");
    }
}

fn expect_descriptors() {
    let files: Vec<File> = (0..4).map(file_with_number).collect();
    let last = files.last().unwrap().as_raw_fd();
    let mut command = Command::new("/bin/cat");
    // The numbers are that of a source, and those that a socket of the spawn gets.
    for (number, file) in (last..).zip(files) {
        command
            .arg(format!("/proc/self/fd/{number}"))
            .fd(number, file);
    }
    assert_eq!(stdout_of(&mut command), "0123");
}

fn file_with_number(number: i32) -> File {
    let mut file = tempfile::tempfile().unwrap();
    write!(file, "{number}").unwrap();
    file
}

fn expect_user() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    let status = status_of(|command| {
        command.uid(OTHER_USER).gid(OTHER_USER);
    });
    assert_eq!(status["Uid"], vec![OTHER_USER.to_string(); 4].join("\t"));
}

fn expect_control_group() {
    let Some(group) = new_group() else {
        return skip("this needs a control group of version 2 that this process may create");
    };
    let mut command = Command::new("/bin/cat");
    command
        .arg("/proc/self/cgroup")
        .cgroup(File::open(&group).unwrap());
    let output = command.output().unwrap();
    common::eventually("the group is empty", || fs::remove_dir(&group).is_ok());
    let name = group.file_name().unwrap().to_str().unwrap();
    let groups = String::from_utf8(output.stdout).unwrap();
    assert!(groups.contains(name), "{groups}");
}

/// Returns a control group of version 2, where this process may create one.
fn new_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .map(|fields| PathBuf::from(fields[1]))?;
    let group = root.join(format!("pidfd-spawn-fallback-{}", std::process::id()));
    fs::create_dir(&group).ok().map(|()| group)
}
