//! Processors, memory and processes of a payload, bounded by control groups, or without any.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use support::{LOOP, Shim, eventually, invocation, printed, runs, sh, spec};
use vmm_shim::{ARGV0, ControlGroup, Ending, FILES, FailureKind, KILL_SIGNAL, PayloadSpec, Report};

fn bounded(mut payload: PayloadSpec, cpus: u32, memory_mib: u32) -> PayloadSpec {
    payload.cpus = Some(cpus);
    payload.memory_mib = Some(memory_mib);
    payload
}

/// Looks for the last line of what has none.
fn greedy() -> PayloadSpec {
    PayloadSpec::command(["tail", "/dev/zero"])
}

/// Whether this host gives groups to shims; that it does not is said.
fn has_groups() -> bool {
    let checked = ControlGroup::check();
    if let Err(error) = &checked {
        skipped(error);
    }
    checked.is_ok()
}

/// Not by `println`, which a test that passes does not show.
fn skipped(why: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "SKIPPED, in part: {why}");
}

fn groups_of(shim: &Shim) -> Vec<PathBuf> {
    let record = fs::read_to_string(shim.path(FILES.control_group)).unwrap();
    let dirs = record.lines().map(PathBuf::from);
    dirs.filter(|dir| dir.exists()).collect()
}

fn group_of(shim: &Shim) -> ControlGroup {
    ControlGroup::of_box(shim.dir.path()).unwrap().unwrap()
}

/// A shim that runs, and its groups.
fn with_groups(script: &str) -> Option<(Shim, Vec<PathBuf>)> {
    if !has_groups() {
        return None;
    }
    let shim = bounded_and_running(script);
    let dirs = groups_of(&shim);
    assert!(!dirs.is_empty());
    Some((shim, dirs))
}

fn bounded_and_running(script: &str) -> Shim {
    let payload = bounded(sh(&format!("{script} echo begun; {LOOP}")), 1, 64);
    let mut shim = Shim::of(payload);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.eventually_prints("begun");
    shim
}

/// A group that a test makes, to be dropped after the shim that is in it.
struct Around(PathBuf);

impl Around {
    fn beside(group: &Path) -> Self {
        let dir = group.with_file_name(format!("around-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn path() -> String {
    std::env::var("PATH").unwrap()
}

/// A shim of a user who may make no group.
fn without_groups(payload: PayloadSpec) -> Shim {
    without_groups_within(payload, "unlimited")
}

/// The same, where the user may have no more than so many bytes of data.
fn without_groups_within(payload: PayloadSpec, data: &str) -> Shim {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    // Where that user can execute it. By another process: one that this one forks meanwhile would
    // hold on to a file that is written to, which cannot be executed, execve(2).
    let program = dir.path().join("vmm-shim");
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_vmm-shim")).arg(&program);
    assert!(copy.status().unwrap().success());
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--data={data}"))
        .arg(ARGV0)
        .args(invocation().args())
        .env("PATH", format!("{}:{}", dir.path().display(), path()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
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
    let expected = match has_groups() {
        true => (Ending::OutOfMemory, Some(137)),
        // Without a control group the payload notices by itself.
        false => (Ending::Exited { code: 1 }, Some(1)),
    };
    let mut shim = Shim::of(bounded(greedy(), 1, 64));
    let code = shim.wait().code();
    assert_eq!((shim.record().ending, code), expected);
    let left = ControlGroup::of_box(shim.dir.path()).unwrap();
    assert_eq!(left, None);
}

#[test]
fn who_survives_a_want_of_memory_and_is_killed_by_its_shim_has_not_ended_of_that() {
    let Some((mut shim, _)) = with_groups("tail /dev/zero; echo tail=$?;") else {
        return;
    };
    assert_eq!(printed(&shim, "tail"), "137");
    shim.signal(KILL_SIGNAL);
    shim.wait();
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 9 });
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
    let members = group_of(&shim).pids().unwrap();
    assert!(members.contains(&shim.payload_pid()), "{members:?}");
    assert!(!members.contains(&shim.child.id()), "the shim is bounded");
}

#[test]
fn a_payload_starts_no_more_processes_than_it_may_have() {
    if !has_groups() {
        return;
    }
    let forks = "n=0; while [ $n -lt 40 ]; do sleep 1000 & n=$((n + 1)); done; echo started=$n";
    let mut payload = sh(forks);
    payload.pids = Some(8);
    let mut shim = Shim::of(payload);
    // The fork that fails ends the shell.
    assert_ne!(shim.wait().code(), Some(0));
    assert!(!shim.console().contains("started"), "{}", shim.console());
    // Threads count, too.
    let mut payload = PayloadSpec::command([
        "python3",
        "-c",
        "import threading, time
for _ in range(40): threading.Thread(target=time.sleep, args=(0.01,), daemon=True).start()
print('started')",
    ]);
    payload.pids = Some(1);
    let mut shim = Shim::of(payload);
    assert_eq!(shim.wait().code(), Some(1));
    assert!(!shim.console().contains("started"), "{}", shim.console());
}

#[test]
fn without_a_group_processes_are_not_limited() {
    let mut payload = sh("sh -c 'exit 3'; exit $?");
    payload.pids = Some(1);
    let mut shim = without_groups(payload);
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn a_host_says_beforehand_whether_there_will_be_groups() {
    let dirs = groups_of(&bounded_and_running(""));
    let checked = ControlGroup::check();
    assert_eq!(checked.is_ok(), !dirs.is_empty(), "{checked:?} {dirs:?}");
}

#[test]
fn a_controller_that_is_lacking_takes_nothing_from_the_other() {
    let memory = Path::new("/sys/fs/cgroup/memory");
    if !has_groups() {
        return;
    }
    let bins = Path::new(env!("CARGO_BIN_EXE_vmm-shim")).parent().unwrap();
    // In a mount namespace of its own.
    let unmounted = |program: &str| {
        let mut command = Command::new("unshare");
        let script = format!("umount $0 && exec {program} \"$@\"");
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(memory)
            .env("PATH", format!("{}:{}", bins.display(), path()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    };
    if !unmounted("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        return skipped(&"no hierarchy with memory alone can be unmounted");
    }
    let mut shim = Shim::started_by(unmounted("vmm-shim").args(invocation().args()));
    let payload = bounded(sh(&format!("echo data=$(ulimit -d); {LOOP}")), 1, 64);
    shim.tell(&spec(payload).to_line().unwrap());
    assert_eq!(printed(&shim, "data"), "65536");
    let dirs = groups_of(&shim);
    assert!(
        matches!(&dirs[..], [cpu] if cpu.join("cpu.cfs_quota_us").exists()),
        "{dirs:?}"
    );
}

#[test]
fn a_bound_around_the_shim_that_is_tighter_takes_no_group_from_the_payload() {
    if !has_groups() {
        return;
    }
    let other = bounded_and_running("");
    let made = groups_of(&other);
    let quota = made.iter().map(|dir| dir.join("cpu.cfs_quota_us"));
    let Some(quota) = quota.into_iter().find(|file| file.exists()) else {
        return skipped(&"version 2 of control groups has no such refusal");
    };
    let around = Around::beside(quota.parent().unwrap());
    fs::write(around.0.join("cpu.cfs_quota_us"), "100000").unwrap();
    let mut shim = Shim::without_spec();
    fs::write(around.0.join("cgroup.procs"), shim.child.id().to_string()).unwrap();
    let mut payload = sh(&format!("echo begun; {LOOP}"));
    payload.cpus = Some(2);
    shim.tell(&spec(payload).to_line().unwrap());
    shim.eventually_prints("begun");
    let dirs = groups_of(&shim);
    assert!(
        matches!(&dirs[..], [cpu] if cpu.starts_with(&around.0)),
        "{dirs:?}"
    );
}

#[test]
fn a_group_knows_who_has_left_session_and_environment() {
    let Some((shim, _)) = with_groups("env -i setsid -f sh -c 'echo away=$$; sleep 1000';") else {
        return;
    };
    let away: u32 = printed(&shim, "away").parse().unwrap();
    let members = group_of(&shim).pids().unwrap();
    assert!(members.contains(&away), "{members:?}");
}

#[test]
fn a_group_ends_with_its_payload_and_outlives_a_killed_shim_until_it_is_removed() {
    let Some((shim, dirs)) = with_groups("") else {
        return;
    };
    let group = group_of(&shim);
    let busy = group.remove().unwrap_err();
    assert_eq!(busy.source.kind(), io::ErrorKind::ResourceBusy);
    shim.signal(nix::sys::signal::Signal::SIGKILL);
    eventually("the end of the payload", || !runs(shim.payload_pid()));
    group.remove().unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    assert_eq!(ControlGroup::of_box(shim.dir.path()).unwrap(), None);
}

#[test]
fn a_record_that_names_other_groups_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.procs"), "").unwrap();
    let record = format!("{}\n", dir.path().display());
    fs::write(dir.path().join(FILES.control_group), record).unwrap();
    assert_eq!(ControlGroup::of_box(dir.path()).unwrap(), None);
    let fifo = tempfile::tempdir().unwrap();
    let path = fifo.path().join(FILES.control_group);
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    assert_eq!(ControlGroup::of_box(fifo.path()).unwrap(), None);
}

#[test]
fn without_a_group_a_payload_is_kept_on_its_processors_and_within_its_data() {
    let shim = without_groups(bounded(sh("echo on=$(nproc); ulimit -d; exit 3"), 1, 64));
    assert_eq!(printed(&shim, "on"), "1");
    shim.eventually_prints("65536");
    let mut shim = without_groups(bounded(greedy(), 1, 64));
    assert_eq!(shim.wait().code(), Some(1));
    let tight = without_groups_within(bounded(sh("ulimit -d"), 1, 64), "33554432");
    tight.eventually_prints("32768");
}

#[test]
fn a_payload_that_may_have_more_than_the_host_has_runs() {
    let mut payload = bounded(sh("exit 3"), u32::MAX, u32::MAX);
    payload.pids = Some(u32::MAX);
    let mut shim = Shim::of(payload);
    assert_eq!(shim.wait().code(), Some(3));
    let mut shim = without_groups(bounded(sh("exit 3"), u32::MAX, u32::MAX));
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn nothing_is_no_limit() {
    for (cpus, memory_mib, pids) in [(0, 64, 1), (1, 0, 1), (1, 64, 0)] {
        let mut payload = bounded(sh("exit 0"), cpus, memory_mib);
        payload.pids = Some(pids);
        let mut shim = Shim::of(payload);
        assert_eq!(shim.wait().code(), Some(125));
        let Ending::Failed { kind, .. } = shim.record().ending else {
            panic!("{:?}", shim.record());
        };
        assert_eq!(kind, FailureKind::Spec);
    }
}
