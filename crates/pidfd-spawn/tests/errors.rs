//! What is left, and what is reported, if a spawn fails.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::error::Error;
use std::fs::File;
use std::io::{self, ErrorKind};

use common::own_process::in_own_process;
use common::{Repeat, open_descriptors, own_children};
use nix::libc;
use pidfd_spawn::{Command, Resource, SpawnError, Stdio, Step};

/// Sets up a command.
type SetUp = fn(&mut Command);

#[test]
fn the_error_has_the_step_the_program_and_the_cause() {
    let error = Command::new("/nonexistent/program").spawn().unwrap_err();
    assert_eq!(error.step(), Step::Exec);
    assert_eq!(error.program(), "/nonexistent/program");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    assert_eq!(
        error.to_string(),
        "cannot spawn \"/nonexistent/program\": cannot execute the program"
    );
    let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.raw_os_error(), Some(libc::ENOENT));

    let error = io::Error::from(error);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let spawn_error = error.get_ref().unwrap().downcast_ref::<SpawnError>();
    assert_eq!(spawn_error.unwrap().step(), Step::Exec);
}

#[test]
fn the_error_has_the_program_if_another_file_is_executed() {
    let mut command = Command::new("program");
    let error = command.executable("/nonexistent").spawn().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    assert_eq!(
        error.to_string(),
        "cannot spawn \"program\": cannot execute the program"
    );
    assert_eq!(command.get_program(), "program");
}

#[test]
fn a_nul_byte_is_invalid_input() {
    let mut commands = [
        Command::new("a\0b"),
        Command::new("/bin/true"),
        Command::new("/bin/true"),
        Command::new("/bin/true"),
        Command::new("/bin/true"),
        Command::new("/bin/true"),
        Command::new("true"),
    ];
    commands[1].arg("a\0b");
    commands[2].arg0("a\0b");
    commands[3].env("a\0b", "");
    commands[4].env("a", "a\0b");
    commands[5].current_dir("a\0b");
    commands[6].env("PATH", "/bin\0/usr");
    for mut command in commands {
        let error = command.spawn().unwrap_err();
        assert_eq!(error.step(), Step::Arguments, "{command:?}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{command:?}");
        assert_eq!(io::Error::from(error).kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn each_step_reports_its_failure() {
    let cases: [(SetUp, Step, i32); 7] = [
        (
            |command| _ = command.arg("x".repeat(1 << 20)),
            Step::Exec,
            libc::E2BIG,
        ),
        (
            |command| _ = command.current_dir("/nonexistent"),
            Step::CurrentDir,
            libc::ENOENT,
        ),
        (
            |command| _ = command.process_group(-1),
            Step::ProcessGroup,
            libc::EINVAL,
        ),
        (
            |command| _ = command.parent_death_signal(1_000),
            Step::ParentDeathSignal,
            libc::EINVAL,
        ),
        (
            |command| _ = command.rlimit(Resource::Core, 1, 0),
            Step::Rlimit,
            libc::EINVAL,
        ),
        (
            |command| _ = command.fd(-1, null()),
            Step::Descriptors,
            libc::EBADF,
        ),
        (
            |command| _ = command.cgroup(null()),
            Step::Cgroup,
            libc::ENOTDIR,
        ),
    ];
    for (set_up, step, errno) in cases {
        let mut command = Command::new("/bin/true");
        set_up(&mut command);
        let error = command.spawn().unwrap_err();
        assert_eq!((error.step(), error.raw_os_error()), (step, Some(errno)));
    }
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

#[test]
fn a_failed_spawn_leaves_no_zombie_and_no_descriptor() {
    in_own_process("a_failed_spawn_leaves_no_zombie_and_no_descriptor", || {
        let before = open_descriptors();
        for _ in 0..50 {
            let mut command = Command::new("/nonexistent");
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command.fd(9, null());
            command.spawn().unwrap_err();
            // SAFETY: the closure does nothing.
            unsafe { command.pre_exec(|| Ok(())) };
            command.spawn().unwrap_err();
        }
        assert_eq!(own_children(), []);
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn a_failed_spawn_is_reported_although_the_kernel_reaps_children() {
    in_own_process(
        "a_failed_spawn_is_reported_although_the_kernel_reaps_children",
        || {
            common::ignore(libc::SIGCHLD);
            let mut command = Command::new("/nonexistent");
            assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
            // SAFETY: the closure does nothing.
            unsafe { command.pre_exec(|| Ok(())) };
            assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(own_children(), []);
        },
    );
}

#[test]
fn a_shortage_of_descriptors_is_reported_and_leaves_no_child() {
    in_own_process(
        "a_shortage_of_descriptors_is_reported_and_leaves_no_child",
        || {
            use nix::sys::resource::{Resource, setrlimit};
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("log");
            let command = || {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", "echo line >> \"$0\""]).arg(&log);
                command
            };
            let mut forking = command();
            // SAFETY: the closure does nothing.
            unsafe { forking.pre_exec(|| Ok(())) };
            setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
            let mut files = Vec::new();
            while let Ok(file) = File::open("/dev/null") {
                files.push(file);
            }

            // A thread that takes all free descriptors now and then makes every step fail.
            let _thief = Repeat::start(|| {
                let open = |_| File::open("/dev/null").ok();
                drop((0..4).filter_map(open).collect::<Vec<_>>());
            });
            // The fewer are free, the earlier is the step that fails.
            let mut succeeded = 0;
            let mut failed = 0;
            for round in 0..400 {
                if round % 40 == 0 {
                    files.pop();
                }
                for command in [&mut command(), &mut forking] {
                    match command.spawn() {
                        Ok(mut child) => {
                            assert!(child.wait().unwrap().success());
                            succeeded += 1;
                        }
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
                            failed += 1;
                        }
                    }
                }
            }
            let lines = std::fs::read_to_string(log).unwrap().lines().count();
            assert_eq!(lines, succeeded);
            assert!(failed > 0 && succeeded > 0);
            drop(files);
            assert_eq!(own_children(), []);
        },
    );
}
