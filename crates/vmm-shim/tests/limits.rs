//! Limits on the CPUs, memory and processes of a payload, with and without control groups.
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
use support::client::Client;
use support::{LOOP, Shim, eventually, invocation, is_running, printed_value, sh, spec};
use vmm_shim::{ARGV0, ControlGroup, Ending, FILES, FailureKind, KILL_SIGNAL, PayloadSpec, Report};

fn limited(mut payload: PayloadSpec, cpus: u32, memory_mib: u32) -> PayloadSpec {
    payload.cpus = Some(cpus);
    payload.memory_mib = Some(memory_mib);
    payload
}

/// Returns a payload that allocates memory without end: it searches for the last line of an endless
/// file.
fn memory_hog() -> PayloadSpec {
    PayloadSpec::command(["tail", "/dev/zero"])
}

/// Returns true if shims on this host can create control groups. Prints the reason otherwise.
fn has_groups() -> bool {
    let result = ControlGroup::check();
    if let Err(error) = &result {
        print_skipped(error);
    }
    result.is_ok()
}

/// Prints why a part of a test is skipped. Not with `println`, which a passing test does not show.
fn print_skipped(reason: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "SKIPPED in part: {reason}");
}

/// Returns the existing directories in the record of the control groups.
fn group_dirs(shim: &Shim) -> Vec<PathBuf> {
    let record = fs::read_to_string(shim.path(FILES.control_group)).unwrap();
    let dirs = record.lines().map(PathBuf::from);
    dirs.filter(|dir| dir.exists()).collect()
}

fn control_group(shim: &Shim) -> ControlGroup {
    ControlGroup::of_box(shim.dir.path()).unwrap().unwrap()
}

/// Starts a limited shell script. Returns `None` if shims cannot create control groups.
fn start_in_groups(script: &str) -> Option<(Shim, Vec<PathBuf>)> {
    if !has_groups() {
        return None;
    }
    let shim = start_limited(script);
    let dirs = group_dirs(&shim);
    assert!(!dirs.is_empty());
    Some((shim, dirs))
}

fn start_limited(script: &str) -> Shim {
    let payload = limited(sh(&format!("{script} echo started; {LOOP}")), 1, 64);
    let mut shim = Shim::start(payload);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    shim.eventually_prints("started");
    shim
}

/// A control group of the test. It must be dropped after the shim in it.
struct OuterGroup(PathBuf);

impl OuterGroup {
    fn beside(group: &Path) -> Self {
        let dir = group.with_file_name(format!("outer-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for OuterGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn path() -> String {
    std::env::var("PATH").unwrap()
}

/// Starts a shim as a user who cannot create control groups.
fn start_without_groups(payload: PayloadSpec) -> Shim {
    start_without_groups_within(payload, "unlimited")
}

/// Starts a shim as a user who cannot create control groups, with this data limit in bytes.
fn start_without_groups_within(payload: PayloadSpec, data: &str) -> Shim {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    // A copy that the user can execute. `cp` writes it: a child that this process forks at the same
    // time would inherit an open descriptor, and a file that is open for writing cannot be
    // executed, execve(2).
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
    let mut shim = Shim::spawn_in(dir, &mut command);
    shim.send(&spec(payload).to_line().unwrap());
    shim
}

#[test]
fn a_payload_that_exceeds_its_memory_limit_ends() {
    let expected = if has_groups() {
        (Ending::OutOfMemory, Some(137))
    } else {
        // Without a control group, an allocation of the payload fails.
        (Ending::Exited { code: 1 }, Some(1))
    };
    let mut shim = Shim::start(limited(memory_hog(), 1, 64));
    let code = shim.wait().code();
    assert_eq!((shim.record().ending, code), expected);
    let remaining = ControlGroup::of_box(shim.dir.path()).unwrap();
    assert_eq!(remaining, None);
}

#[test]
fn only_the_process_that_the_kernel_has_killed_is_out_of_memory() {
    let Some((mut shim, _)) = start_in_groups("") else {
        return;
    };
    let mut client = Client::connect(&shim);
    client.exec(1, "exec-1", "exec tail /dev/zero");
    assert_eq!(client.finish(1).2, Ending::OutOfMemory);
    client.exec(2, "exec-2", "kill -9 $$");
    assert_eq!(client.finish(2).2, Ending::Signaled { signal: 9 });
    let payload = shim.payload_pid();
    client.exec(3, "exec-3", &format!("kill -9 {payload}"));
    shim.wait();
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 9 });
}

#[test]
fn a_payload_killed_by_its_shim_is_not_out_of_memory() {
    let Some((mut shim, _)) = start_in_groups("tail /dev/zero; echo tail=$?;") else {
        return;
    };
    assert_eq!(printed_value(&shim, "tail"), "137");
    shim.signal(KILL_SIGNAL);
    shim.wait();
    assert_eq!(shim.record().ending, Ending::Signaled { signal: 9 });
}

#[test]
fn the_control_groups_have_the_limits_and_the_payload() {
    let Some((shim, dirs)) = start_in_groups("") else {
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
    let pids = control_group(&shim).pids().unwrap();
    assert!(pids.contains(&shim.payload_pid()), "{pids:?}");
    assert!(!pids.contains(&shim.child.id()), "the shim is limited");
}

#[test]
fn processes_and_threads_are_limited() {
    if !has_groups() {
        return;
    }
    let forks = "n=0; while [ $n -lt 40 ]; do sleep 1000 & n=$((n + 1)); done; echo started=$n";
    let mut payload = sh(forks);
    payload.pids = Some(8);
    let mut shim = Shim::start(payload);
    // The shell exits when a fork fails.
    assert_ne!(shim.wait().code(), Some(0));
    assert!(!shim.console().contains("started"), "{}", shim.console());
    // Threads count as processes.
    let mut payload = PayloadSpec::command([
        "python3",
        "-c",
        "import threading, time
for _ in range(40): threading.Thread(target=time.sleep, args=(0.01,), daemon=True).start()
print('started')",
    ]);
    payload.pids = Some(1);
    let mut shim = Shim::start(payload);
    assert_eq!(shim.wait().code(), Some(1));
    assert!(!shim.console().contains("started"), "{}", shim.console());
}

#[test]
fn without_a_group_processes_are_unlimited() {
    let mut payload = sh("sh -c 'exit 3'; exit $?");
    payload.pids = Some(1);
    let mut shim = start_without_groups(payload);
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn check_predicts_whether_groups_are_created() {
    let dirs = group_dirs(&start_limited(""));
    let result = ControlGroup::check();
    assert_eq!(result.is_ok(), !dirs.is_empty(), "{result:?} {dirs:?}");
}

#[test]
fn a_missing_controller_does_not_affect_the_others() {
    let memory = Path::new("/sys/fs/cgroup/memory");
    if !has_groups() {
        return;
    }
    let bins = Path::new(env!("CARGO_BIN_EXE_vmm-shim")).parent().unwrap();
    // Runs the program in a mount namespace without that hierarchy.
    let without_memory_hierarchy = |program: &str| {
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
    if !without_memory_hierarchy("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        return print_skipped(&"there is no separate hierarchy for memory to unmount");
    }
    let mut shim = Shim::spawn(without_memory_hierarchy("vmm-shim").args(invocation().args()));
    let payload = limited(sh(&format!("echo data=$(ulimit -d); {LOOP}")), 1, 64);
    shim.send(&spec(payload).to_line().unwrap());
    assert_eq!(printed_value(&shim, "data"), "65536");
    let dirs = group_dirs(&shim);
    assert!(
        matches!(&dirs[..], [cpu] if cpu.join("cpu.cfs_quota_us").exists()),
        "{dirs:?}"
    );
}

#[test]
fn a_lower_limit_of_the_parent_group_is_accepted() {
    if !has_groups() {
        return;
    }
    let other = start_limited("");
    let dirs = group_dirs(&other);
    let quota = dirs.iter().map(|dir| dir.join("cpu.cfs_quota_us"));
    let Some(quota) = quota.into_iter().find(|file| file.exists()) else {
        return print_skipped(&"version 2 of control groups accepts such a limit");
    };
    let outer = OuterGroup::beside(quota.parent().unwrap());
    fs::write(outer.0.join("cpu.cfs_quota_us"), "100000").unwrap();
    let mut shim = Shim::without_spec();
    fs::write(outer.0.join("cgroup.procs"), shim.child.id().to_string()).unwrap();
    let mut payload = sh(&format!("echo started; {LOOP}"));
    payload.cpus = Some(2);
    shim.send(&spec(payload).to_line().unwrap());
    shim.eventually_prints("started");
    let dirs = group_dirs(&shim);
    assert!(
        matches!(&dirs[..], [cpu] if cpu.starts_with(&outer.0)),
        "{dirs:?}"
    );
}

#[test]
fn a_group_contains_processes_that_left_session_and_environment() {
    let Some((shim, _)) = start_in_groups("env -i setsid -f sh -c 'echo detached=$$; sleep 1000';")
    else {
        return;
    };
    let detached: u32 = printed_value(&shim, "detached").parse().unwrap();
    let pids = control_group(&shim).pids().unwrap();
    assert!(pids.contains(&detached), "{pids:?}");
}

#[test]
fn a_group_outlives_a_killed_shim_until_it_is_removed() {
    let Some((shim, dirs)) = start_in_groups("") else {
        return;
    };
    let group = control_group(&shim);
    let busy = group.remove().unwrap_err();
    assert_eq!(busy.source.kind(), io::ErrorKind::ResourceBusy);
    shim.signal(nix::sys::signal::Signal::SIGKILL);
    eventually("the exit of the payload", || {
        !is_running(shim.payload_pid())
    });
    group.remove().unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    assert_eq!(ControlGroup::of_box(shim.dir.path()).unwrap(), None);
}

#[test]
fn a_forged_record_is_ignored() {
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
fn without_a_group_affinity_and_data_are_limited() {
    let shim = start_without_groups(limited(sh("echo on=$(nproc); ulimit -d; exit 3"), 1, 64));
    assert_eq!(printed_value(&shim, "on"), "1");
    shim.eventually_prints("65536");
    let mut shim = start_without_groups(limited(memory_hog(), 1, 64));
    assert_eq!(shim.wait().code(), Some(1));
    let tight = start_without_groups_within(limited(sh("ulimit -d"), 1, 64), "33554432");
    tight.eventually_prints("32768");
}

#[test]
fn limits_above_those_of_the_host_are_accepted() {
    let mut payload = limited(sh("exit 3"), u32::MAX, u32::MAX);
    payload.pids = Some(u32::MAX);
    let mut shim = Shim::start(payload);
    assert_eq!(shim.wait().code(), Some(3));
    let mut shim = start_without_groups(limited(sh("exit 3"), u32::MAX, u32::MAX));
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn a_limit_of_zero_is_rejected() {
    for (cpus, memory_mib, pids) in [(0, 64, 1), (1, 0, 1), (1, 64, 0)] {
        let mut payload = limited(sh("exit 0"), cpus, memory_mib);
        payload.pids = Some(pids);
        let mut shim = Shim::start(payload);
        assert_eq!(shim.wait().code(), Some(125));
        let Ending::Failed { kind, .. } = shim.record().ending else {
            panic!("{:?}", shim.record());
        };
        assert_eq!(kind, FailureKind::Spec);
    }
}
