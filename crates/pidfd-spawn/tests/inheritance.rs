//! Children that inherit only the descriptors that their command gives them.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;

use common::own_process::in_own_process;
use common::seccomp::{Refuse, When, refuse};
use common::{DEADLINE, Repeat, open_descriptors, own_children, shell, status_of, stdout_of};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pidfd_spawn::{Command, Stdio, reserve_descriptors};

/// More descriptors than a table of its first size has.
const OPEN: usize = 300;

/// Opens a file, and makes it inheritable.
fn open_inheritable() -> OwnedFd {
    let file = OwnedFd::from(File::open("/dev/zero").unwrap());
    // SAFETY: changes only this descriptor.
    let changed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(changed, 0);
    file
}

/// The descriptors of a child besides the standard streams.
fn descriptors_of_child(command: &mut Command) -> BTreeSet<RawFd> {
    descriptors_in(&stdout_of(command))
}

/// The same of a child that std spawns, which inherits those of this process.
fn descriptors_of_std_child() -> BTreeSet<RawFd> {
    let mut command = std::process::Command::new("/bin/ls");
    let output = command.args(["-l", "/proc/self/fd"]).output().unwrap();
    descriptors_in(&String::from_utf8(output.stdout).unwrap())
}

fn descriptors_in(listing: &str) -> BTreeSet<RawFd> {
    let links = listing.lines().filter_map(|line| line.split_once(" -> "));
    // ls itself opens the directory.
    let links = links.filter(|(_, target)| !target.ends_with("/fd"));
    let numbers = links.map(|(link, _)| link.rsplit(' ').next().unwrap().parse().unwrap());
    numbers.filter(|number| *number > 2).collect()
}

fn lister() -> Command {
    let mut command = Command::new("/bin/ls");
    command
        .args(["-l", "/proc/self/fd"])
        .inherit_descriptors(false);
    command
}

/// Makes the first spawn, which reserves low numbers.
fn spawn_first() {
    let mut command = Command::new("true");
    let status = command.inherit_descriptors(false).status().unwrap();
    assert!(status.success());
}

/// Expects that a child has only what its command gives it, with and without as many as there are slots.
fn expect_only_given() {
    let _inheritable: Vec<_> = (0..OPEN).map(|_| open_inheritable()).collect();
    assert_eq!(descriptors_of_child(&mut lister()), BTreeSet::new());
    for targets in [3..7, 3..20, 250..254] {
        let mut command = lister();
        for target in targets.clone() {
            command.fd(target, File::open("/dev/full").unwrap());
        }
        assert_eq!(descriptors_of_child(&mut command), targets.collect());
    }
    expect_streams();
}

fn expect_streams() {
    let mut command = shell("read line; echo $line; echo $line >&2; exit 7");
    let mut child = command
        .inherit_descriptors(false)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The other ends hang up, so this process has kept none of those of the child.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"hello\n");
    assert_eq!(output.stderr, b"hello\n");
}

#[test]
fn a_child_gets_only_what_its_command_gives_it() {
    in_own_process(
        "a_child_gets_only_what_its_command_gives_it",
        expect_only_given,
    );
}

#[test]
fn a_forked_child_gets_only_what_its_command_gives_it() {
    in_own_process("a_forked_child_gets_only_what_its_command_gives_it", || {
        let _inheritable = open_inheritable();
        let mut command = lister();
        // SAFETY: the closure does nothing.
        unsafe { command.pre_exec(|| Ok(())) };
        assert_eq!(descriptors_of_child(&mut command), BTreeSet::new());
    });
}

#[test]
fn a_child_gets_only_that_on_older_kernels() {
    in_own_process("a_child_gets_only_that_on_older_kernels", || {
        refuse(&[Refuse {
            call: libc::SYS_close_range,
            when: When::Always,
            with: Errno::ENOSYS,
        }]);
        expect_only_given();
    });
}

/// A child that cannot leave the table of its parent starts with a copy of it, and so do the later children
/// of the same thread.
#[test]
fn a_child_gets_only_that_where_a_filter_lets_it_share_the_table_only() {
    const TEST: &str = "a_child_gets_only_that_where_a_filter_lets_it_share_the_table_only";
    in_own_process(TEST, || {
        spawn_first();
        for errno in [Errno::ENOSYS, Errno::EPERM, Errno::EINVAL] {
            in_thread(|| {
                let rules = [libc::SYS_close_range, libc::SYS_unshare, libc::SYS_clone3];
                refuse(&rules.map(|call| Refuse {
                    call,
                    when: When::Always,
                    with: errno,
                }));
                expect_only_given();
                refuse(&[Refuse {
                    call: libc::SYS_clone,
                    when: When::FirstHas(libc::CLONE_FILES as u32),
                    with: Errno::EAGAIN,
                }]);
                expect_only_given();
                assert_eq!(own_children(), []);
            });
        }
        expect_small_table();
    });
}

fn in_thread(run: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(run);
    });
}

#[test]
fn an_inherited_descriptor_is_the_default() {
    in_own_process("an_inherited_descriptor_is_the_default", || {
        let inheritable = open_inheritable();
        let mut command = lister();
        command.inherit_descriptors(true);
        assert!(descriptors_of_child(&mut command).contains(&inheritable.as_raw_fd()));
    });
}

#[test]
fn a_child_does_not_start_with_the_descriptors_of_its_parent() {
    const TEST: &str = "a_child_does_not_start_with_the_descriptors_of_its_parent";
    in_own_process(TEST, || {
        spawn_first();
        expect_small_table();
    });
}

/// The first spawn happens when the process has opened many files.
#[test]
fn reserved_descriptors_keep_low_numbers_for_later_children() {
    const TEST: &str = "reserved_descriptors_keep_low_numbers_for_later_children";
    in_own_process(TEST, || {
        reserve_descriptors().unwrap();
        let reserved = open_descriptors();
        expect_small_table();
        reserve_descriptors().unwrap();
        assert_eq!(open_descriptors(), reserved);
    });
}

/// Expects that the kernel neither copies the descriptors of this process for the child, nor closes them at
/// `exec`.
fn expect_small_table() {
    let _open: Vec<_> = (0..OPEN)
        .map(|_| File::open("/dev/zero").unwrap())
        .collect();
    let sizes = [true, false].map(|inherit| {
        let status = status_of(|command| {
            command.inherit_descriptors(inherit);
        });
        status["FDSize"].parse::<usize>().unwrap()
    });
    assert!(sizes[0] > OPEN, "{sizes:?}");
    assert!(sizes[1] < OPEN, "{sizes:?}");
}

#[test]
fn concurrent_spawns_do_not_mix_their_descriptors() {
    in_own_process("concurrent_spawns_do_not_mix_their_descriptors", || {
        let inherited = descriptors_of_std_child();
        spawn_first();
        let before = open_descriptors();
        thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for round in 0..20 {
                        let id = format!("{thread}-{round}");
                        let (mut reader, writer) = UnixStream::pair().unwrap();
                        let mut command = shell(&format!("echo {id}; echo {id} >&5"));
                        command.inherit_descriptors(false).fd(5, writer);
                        assert_eq!(stdout_of(&mut command), id);
                        drop(command);
                        let mut written = String::new();
                        reader.read_to_string(&mut written).unwrap();
                        assert_eq!(written.trim_end(), id);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert_eq!(descriptors_of_std_child(), inherited);
                    }
                });
            }
        });
        assert_eq!(own_children(), []);
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn a_failed_spawn_leaves_the_descriptors_of_its_parent_alone() {
    in_own_process(
        "a_failed_spawn_leaves_the_descriptors_of_its_parent_alone",
        || {
            let spawn = || {
                let (reader, writer) = UnixStream::pair().unwrap();
                let mut command = Command::new("/nonexistent");
                command
                    .inherit_descriptors(false)
                    .stdout(Stdio::piped())
                    .fd(5, writer);
                assert!(command.spawn().is_err());
                drop(command);
                expect_hang_up(reader);
            };
            spawn();
            let before = open_descriptors();
            spawn();
            assert_eq!(open_descriptors(), before);
        },
    );
}

/// The child is spawned below the limit, and its slot is above the lowered one when it is to be reset.
#[test]
fn a_limit_that_becomes_lower_during_a_spawn_keeps_no_descriptor_open() {
    const TEST: &str = "a_limit_that_becomes_lower_during_a_spawn_keeps_no_descriptor_open";
    in_own_process(TEST, || {
        let first = u64::from(File::open("/dev/null").unwrap().as_raw_fd().unsigned_abs());
        spawn_first();
        let pairs: Vec<_> = (0..OPEN / 3).map(|_| UnixStream::pair().unwrap()).collect();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Between the numbers of the slots.
        let limits = [first + 4, soft];
        let changes = Repeat::start(move || {
            for limit in limits {
                setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
                thread::yield_now();
            }
        });
        for (reader, writer) in pairs {
            // Fails if the limit is low at another step.
            let mut command = Command::new("/bin/true");
            let _ = command.inherit_descriptors(false).fd(3, writer).status();
            drop(command);
            expect_hang_up(reader);
        }
        drop(changes);
        assert_eq!(own_children(), []);
    });
}

/// Expects that no process has the other end.
fn expect_hang_up(mut reader: UnixStream) {
    reader.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut written = Vec::new();
    assert_eq!(reader.read_to_end(&mut written).unwrap(), 0);
}
