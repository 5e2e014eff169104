//! Directories of the host that guests share.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tempfile::TempDir;
use vmm_protocol::procfs;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxInfo, BoxStatus, Ending, ExecSpec, HelperCounts, Removal, VmmRuntime, with_causes,
};
use vmm_shim::{QemuOptions, Share};

use crate::common::control_groups::groups_of;
use crate::common::{is_gone, is_zombie, kill};
use crate::guest::{GuestFiles, open_runtime, spec};

/// Returns the files of guests on a host that can serve shares: with virtiofsd, as root.
pub fn find_files() -> Option<GuestFiles> {
    let files = GuestFiles::find()?;
    let programs = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    if programs.iter().any(|path| Path::new(path).exists()) && geteuid().is_root() {
        return Some(files);
    }
    crate::common::skip("this test needs virtiofsd and root");
    None
}

/// Returns a guest that shares a new directory, which contains a file `greeting`.
fn sharing(files: &GuestFiles) -> (QemuOptions, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("greeting"), "hello from the host\n").unwrap();
    let mut share = Share::new("data", dir.path());
    share.target = Some("/mnt/data".into());
    let mut guest = files.guest_with_agent();
    guest.shares.push(share);
    (guest, dir)
}

async fn start(runtime: &VmmRuntime, guest: &QemuOptions) -> BoxInfo {
    let id = runtime.create(spec(guest)).await.unwrap().id;
    runtime.start(&id).await.unwrap()
}

/// Runs a script in the guest, and returns its stdout and stderr.
async fn run(runtime: &VmmRuntime, bx: &BoxInfo, script: &str) -> (String, String) {
    let command = ExecSpec::new("", ["sh", "-c", script]);
    let execution = runtime.exec(&bx.id, command).await.unwrap();
    let output = execution.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// Returns the pid of the virtiofsd of a box.
fn virtiofsd(bx: &BoxInfo) -> u32 {
    let children = procfs::children(bx.pid.unwrap()).unwrap();
    let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let mut servers = children
        .into_iter()
        .filter(|pid| name(*pid) == "virtiofsd\n");
    servers.next().unwrap()
}

#[tokio::test]
async fn a_guest_reads_and_writes_a_shared_directory() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (guest, dir) = sharing(&files);
    let bx = start(&runtime, &guest).await;
    let server = virtiofsd(&bx);
    let network_of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    assert_ne!(network_of(&server.to_string()), network_of("self"));
    let script = "cat /mnt/data/greeting; echo hello from the guest > /mnt/data/reply";
    let (output, errors) = run(&runtime, &bx, script).await;
    assert_eq!((&*output, &*errors), ("hello from the host\n", ""));
    let reply = fs::read_to_string(dir.path().join("reply")).unwrap();
    assert_eq!(reply, "hello from the guest\n");

    let ended = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(ended.status, BoxStatus::Stopped, "{ended:?}");
    assert!(
        matches!(ended.ending, Some(Ending::Guest { .. })),
        "{ended:?}"
    );
    assert!(is_gone(server));
    assert!(!bx.dir.join("virtiofsd.sock").exists());
}

#[tokio::test]
async fn a_guest_cannot_write_to_a_read_only_share() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (mut guest, dir) = sharing(&files);
    guest.shares[0].read_only = true;
    let bx = start(&runtime, &guest).await;
    // The host enforces it, whatever the guest does to its own mount.
    let script = "cat /mnt/data/greeting; busybox mount -o remount,rw /mnt/data; \
                  echo no > /mnt/data/reply; echo no > /mnt/data/greeting";
    let (output, errors) = run(&runtime, &bx, script).await;
    assert_eq!(output, "hello from the host\n");
    assert_eq!(
        errors.matches("Read-only file system").count(),
        2,
        "{errors}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_killed_virtiofsd_ends_the_guest_and_is_the_cause() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (guest, _dir) = sharing(&files);
    let bx = start(&runtime, &guest).await;
    let server = virtiofsd(&bx);
    assert_eq!(runtime.count_boxes().await.helpers.running, 1);
    assert_eq!(runtime.metrics().await.helper_failures_total, 0);
    kill(server, Signal::SIGKILL);
    let ended = runtime.wait(&bx.id).await.unwrap();
    let expected = Ending::Helper {
        name: "virtiofsd of the share data".to_owned(),
        exit: Box::new(Ending::Signaled { signal: 9 }),
    };
    assert_eq!(ended.ending, Some(expected));
    assert_eq!(runtime.count_boxes().await.helpers.running, 0);
    assert_eq!(runtime.metrics().await.helper_failures_total, 1);
    assert_eq!(ended.status, BoxStatus::Failed);
    let error = ended.error.unwrap();
    assert!(
        error.starts_with("virtiofsd of the share data ended"),
        "{error}"
    );
    assert!(is_gone(bx.payload_pid.unwrap()) && is_gone(server));
}

#[tokio::test]
async fn the_next_runtime_counts_the_helper_processes_of_a_detached_guest() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (guest, _dir) = sharing(&files);
    let id = runtime
        .create(spec(&guest).detached(true))
        .await
        .unwrap()
        .id;
    runtime.start(&id).await.unwrap();
    drop(runtime);
    let runtime = open_runtime(&home).await;
    assert_eq!(runtime.count_boxes().await.helpers.running, 1);
    runtime.pause(&id).await.unwrap();
    let helpers = runtime.count_boxes().await.helpers;
    assert_eq!((helpers.running, helpers.paused), (0, 1));
    runtime.remove(&id, Removal::Force).await.unwrap();
    assert_eq!(runtime.count_boxes().await.helpers, HelperCounts::default());
}

#[tokio::test]
async fn qemu_and_its_virtiofsd_share_one_limit_of_a_control_group() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (guest, _dir) = sharing(&files);
    let id = runtime.create(spec(&guest).memory_mib(192)).await;
    let bx = runtime.start(&id.unwrap().id).await.unwrap();
    if let Some(groups) = groups_of(&home, &bx.id) {
        for pid in [bx.payload_pid.unwrap(), virtiofsd(&bx)] {
            for group in &groups {
                let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap();
                let has_process = processes.lines().any(|line| line == pid.to_string());
                assert!(has_process, "{pid} is not in {}", group.display());
            }
        }
        let limits = ["memory.max", "memory.limit_in_bytes"];
        let limits = groups
            .iter()
            .flat_map(|group| limits.map(|name| group.join(name)));
        let limits: Vec<u64> = limits
            .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
            .collect();
        // The memory of the guest, and what QEMU and one virtiofsd use beside it.
        assert_eq!(limits, [(192 + 512 + 64) << 20]);
    }
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_virtiofsd_dies_with_its_shim() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (guest, _dir) = sharing(&files);
    let bx = start(&runtime, &guest).await;
    let server = virtiofsd(&bx);
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
    // It is a child of init then, which reaps it.
    assert!(is_gone(server) || is_zombie(server));
}

#[tokio::test]
async fn a_missing_shared_directory_fails_the_start_with_its_path() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (mut guest, dir) = sharing(&files);
    let missing = dir.path().join("missing");
    guest.shares[0].path.clone_from(&missing);
    let id = runtime.create(spec(&guest)).await.unwrap().id;
    let error = with_causes(&runtime.start(&id).await.unwrap_err());
    assert!(error.contains(&missing.display().to_string()), "{error}");
}

#[tokio::test]
async fn a_guest_whose_shared_directory_vanishes_goes_on() {
    let Some(files) = find_files() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (guest, dir) = sharing(&files);
    let bx = start(&runtime, &guest).await;
    fs::remove_dir_all(dir.path()).unwrap();
    let script =
        "cat /mnt/data/greeting; echo no > /mnt/data/reply; echo works > /tmp/file; cat /tmp/file";
    let (output, errors) = run(&runtime, &bx, script).await;
    assert_eq!(output, "works\n", "{errors}");
    assert!(errors.contains("greeting': No such file"), "{errors}");
    assert!(errors.contains("can't create /mnt/data/reply"), "{errors}");

    // A directory of the same name is not the one that the guest shares.
    fs::create_dir(dir.path()).unwrap();
    fs::write(dir.path().join("secret"), "").unwrap();
    let (output, errors) = run(&runtime, &bx, "cat /mnt/data/secret").await;
    assert_eq!(output, "", "{errors}");
    let ended = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(ended.status, BoxStatus::Stopped, "{ended:?}");
}
