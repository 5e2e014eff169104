//! Resource limits, CPU affinity, nice value and privileges.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::io::ErrorKind;

use common::{OTHER_USER, is_root, shell, skip, stat_of, status_of, stdout_of};
use nix::libc;
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use pidfd_spawn::{Command, Resource, Step};

#[test]
fn limits_are_set() {
    let mut command = shell("ulimit -S -n; ulimit -H -n; ulimit -c");
    command
        .rlimit(Resource::Nofile, 100, 200)
        .rlimit(Resource::Core, 0, 0)
        .rlimit(Resource::Core, 512, 512);
    assert_eq!(stdout_of(&mut command), "100\n200\n1");
}

#[test]
fn a_limit_on_descriptors_does_not_concern_those_of_the_command() {
    let mut command = Command::new("/bin/true");
    command
        .fd(100, tempfile::tempfile().unwrap())
        .rlimit(Resource::Nofile, 10, 10);
    assert!(command.status().unwrap().success());
}

#[test]
fn a_limit_on_the_stack_does_not_concern_the_spawn() {
    let mut command = shell("ulimit -s");
    command.rlimit(Resource::Stack, 256 << 10, 256 << 10);
    assert_eq!(stdout_of(&mut command), "256");
}

#[test]
fn a_privileged_parent_raises_a_limit_for_another_user() {
    let mut command = Command::new("/bin/cat");
    command
        .arg("/proc/self/limits")
        .rlimit(Resource::Msgqueue, u64::MAX, u64::MAX);
    if !is_root() || command.output().is_err() {
        // Containers of root lack it too.
        return eprintln!("SKIPPED: raising a limit needs CAP_SYS_RESOURCE");
    }
    let limits = stdout_of(command.uid(OTHER_USER));
    let line = limits
        .lines()
        .find(|line| line.contains("msgqueue"))
        .unwrap();
    assert_eq!(line.matches("unlimited").count(), 2, "{line}");
}

#[test]
fn a_soft_limit_above_the_hard_limit_is_an_error_of_its_step() {
    let mut command = Command::new("/bin/true");
    let error = command.rlimit(Resource::Nofile, 2, 1).spawn().unwrap_err();
    assert_eq!(error.step(), Step::Rlimit);
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_affinity_is_set() {
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpu = (0..).find(|&cpu| own.is_set(cpu).unwrap()).unwrap();
    let status = status_of(|command| {
        command.affinity([cpu]);
    });
    assert_eq!(status["Cpus_allowed_list"], cpu.to_string());
}

#[test]
fn an_affinity_without_a_cpu_is_an_error_of_its_step() {
    for cpus in [vec![], vec![5_000], vec![usize::MAX]] {
        let error = Command::new("/bin/true")
            .affinity(cpus)
            .spawn()
            .unwrap_err();
        assert_eq!(error.step(), Step::Affinity);
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}

#[test]
fn the_nice_value_is_set() {
    let stat = stat_of(|command| {
        command.nice(7);
    });
    assert_eq!(stat[19], "7");
}

#[test]
fn a_privileged_parent_prefers_another_user() {
    let privileged = Command::new("/bin/true").nice(-5).output().is_ok();
    if !privileged {
        return skip("a negative nice value needs CAP_SYS_NICE");
    }
    let stat = stat_of(|command| {
        command.nice(-5).uid(OTHER_USER);
    });
    assert_eq!(stat[19], "-5");
}

#[test]
fn no_new_privs_is_set() {
    assert_eq!(status_of(|_| {})["NoNewPrivs"], "0");
    let status = status_of(|command| {
        command.no_new_privs(true);
    });
    assert_eq!(status["NoNewPrivs"], "1");
}
