//! Processors and memory of a payload, bounded by control groups, or without any.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::geteuid;
use support::{LOOP, Shim, command_of, eventually, printed, runs, sh, spec};
use vmm_shim::{ControlGroup, Ending, FILES, FailureKind, PayloadSpec, Report};

fn bounded(mut payload: PayloadSpec, cpus: u32, memory_mib: u32) -> PayloadSpec {
    payload.cpus = Some(cpus);
    payload.memory_mib = Some(memory_mib);
    payload
}

/// Looks for the last line of what has none.
fn greedy() -> PayloadSpec {
    PayloadSpec::command(["tail", "/dev/zero"])
}

/// A shim that runs, and its groups; none on a host that gives it none, which is said.
fn with_groups(script: &str) -> Option<(Shim, Vec<PathBuf>)> {
    let payload = bounded(sh(&format!("{script} echo begun; {LOOP}")), 1, 64);
    let mut shim = Shim::of(payload);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.eventually_prints("begun");
    let record = fs::read_to_string(shim.path(FILES.control_group)).unwrap_or_default();
    let dirs: Vec<_> = record.lines().map(PathBuf::from).collect();
    if dirs.is_empty() || dirs.iter().any(|dir| !dir.exists()) {
        println!("SKIPPED: this host lets this user make no control group");
        return None;
    }
    Some((shim, dirs))
}

/// A shim of a user who may make no group.
fn without_groups(payload: PayloadSpec) -> Shim {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    // Where that user can execute it. By another process: one that this one forks meanwhile would
    // hold on to a file that is written to, which cannot be executed, execve(2).
    let program = dir.path().join("vmm-shim");
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_vmm-shim")).arg(&program);
    assert!(copy.status().unwrap().success());
    let mut command = command_of(&program);
    if geteuid().is_root() {
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut shim = Shim::in_dir(dir, &mut command);
    shim.tell(&spec(payload).to_line().unwrap());
    shim
}

#[test]
fn a_payload_that_takes_more_memory_than_it_may_ends_of_that() {
    let mut shim = Shim::of(bounded(greedy(), 1, 64));
    let code = shim.wait().code();
    match shim.record().ending {
        Ending::OutOfMemory => assert_eq!(code, Some(137)),
        // Without a control group the payload notices by itself.
        ending => assert_eq!(ending, Ending::Exited { code: 1 }),
    }
    assert_eq!(ControlGroup::of_box(shim.dir.path()), None, "is left");
}

#[test]
fn the_kernel_has_the_limits_of_the_group_that_the_payload_is_in() {
    let Some((shim, dirs)) = with_groups("") else {
        return;
    };
    let limits: Vec<_> = dirs
        .iter()
        .flat_map(|dir| {
            [
                "cpu.max",
                "cpu.cfs_quota_us",
                "memory.max",
                "memory.limit_in_bytes",
            ]
            .map(|file| dir.join(file))
        })
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| text.split_whitespace().next().unwrap().to_owned())
        .collect();
    assert_eq!(limits, ["100000", "67108864"]);
    let members = ControlGroup::of_box(shim.dir.path()).unwrap().pids();
    assert!(members.contains(&shim.payload_pid()), "{members:?}");
    assert!(!members.contains(&shim.child.id()), "the shim is bounded");
}

#[test]
fn a_host_says_beforehand_whether_there_will_be_groups() {
    let checked = ControlGroup::check();
    assert_eq!(checked.is_ok(), with_groups("").is_some(), "{checked:?}");
}

#[test]
fn a_group_knows_who_has_left_session_and_environment() {
    let Some((shim, _)) = with_groups("env -i setsid -f sh -c 'echo away=$$; sleep 1000';") else {
        return;
    };
    let away: u32 = printed(&shim, "away").parse().unwrap();
    let members = ControlGroup::of_box(shim.dir.path()).unwrap().pids();
    assert!(members.contains(&away), "{members:?}");
}

#[test]
fn a_group_ends_with_its_payload_and_outlives_a_killed_shim_until_it_is_removed() {
    let Some((shim, dirs)) = with_groups("") else {
        return;
    };
    let dir = shim.dir.path();
    shim.signal(nix::sys::signal::Signal::SIGKILL);
    let group = ControlGroup::of_box(dir).unwrap();
    eventually("the end of the payload", || !runs(shim.payload_pid()));
    group.remove();
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    assert_eq!(ControlGroup::of_box(dir), None);
}

#[test]
fn a_record_that_names_other_groups_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.procs"), "").unwrap();
    let record = format!("{}\n", dir.path().display());
    fs::write(dir.path().join(FILES.control_group), record).unwrap();
    assert_eq!(ControlGroup::of_box(dir.path()), None);
}

#[test]
fn without_a_group_a_payload_is_kept_on_its_processors_and_within_its_data() {
    let shim = without_groups(bounded(sh("echo on=$(nproc); ulimit -d; exit 3"), 1, 64));
    assert_eq!(printed(&shim, "on"), "1");
    shim.eventually_prints("65536");
    let mut shim = without_groups(bounded(greedy(), 1, 64));
    assert_eq!(shim.wait().code(), Some(1));
}

#[test]
fn a_payload_that_may_have_more_than_the_host_has_runs() {
    let mut shim = Shim::of(bounded(sh("exit 3"), u32::MAX, u32::MAX));
    assert_eq!(shim.wait().code(), Some(3));
    let mut shim = without_groups(bounded(sh("exit 3"), u32::MAX, u32::MAX));
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn nothing_is_no_limit() {
    for (cpus, memory_mib) in [(0, 64), (1, 0)] {
        let mut shim = Shim::of(bounded(sh("exit 0"), cpus, memory_mib));
        assert_eq!(shim.wait().code(), Some(125));
        let Ending::Failed { kind, .. } = shim.record().ending else {
            panic!("{:?}", shim.record());
        };
        assert_eq!(kind, FailureKind::Spec);
    }
}
