//! Pods whose server was killed before containerd connected to it: without containerd and without a guest.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The bundles of a containerd, and the pods that were started for them.
struct Host {
    dir: TempDir,
}

impl Host {
    /// Makes the directories; `None`, after a message, without root.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: this test needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let guest = json!({"engine": "qemu", "options": {"kernel": "/none", "agent": true}});
        let config = json!({"state_dir": dir.path().join("pods"), "guest": guest});
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Some(Self { dir })
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.dir.path().join("bundles").join(id)
    }

    /// Returns a command that calls `start` for a container, in a new bundle.
    fn start_command(&self, id: &str) -> Command {
        fs::create_dir_all(self.bundle(id)).unwrap();
        let spec = json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "linux": {}});
        fs::write(self.bundle(id).join("config.json"), spec.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-vmm-v1"));
        command
            .args(["-namespace", "default", "-id", id, "start"])
            .current_dir(self.bundle(id))
            .env(
                "CONTAINERD_SHIM_VMM_CONFIG",
                self.dir.path().join("config.json"),
            )
            .env("TTRPC_ADDRESS", "")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    /// Calls `start` for a container, in a new bundle.
    fn spawn_start(&self, id: &str) -> Child {
        self.start_command(id).spawn().unwrap()
    }

    /// Returns the directory of the pod that `start` has printed.
    fn end_start(start: Child) -> PathBuf {
        let output = start.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let address = String::from_utf8(output.stdout).unwrap();
        let socket = Path::new(address.strip_prefix("unix://").unwrap());
        socket.parent().unwrap().to_owned()
    }

    fn start(&self, id: &str) -> PathBuf {
        Self::end_start(self.spawn_start(id))
    }

    /// Starts a pod, and kills its server when the directory of the pod has a mount.
    fn start_and_kill(&self, id: &str) -> PathBuf {
        let pod = self.start(id);
        eventually("the pod has a mount", || is_mounted(&pod));
        for pid in servers(&self.bundle(id)) {
            kill_process(pid, Signal::KILL).unwrap();
        }
        eventually("the server has ended", || {
            servers(&self.bundle(id)).is_empty()
        });
        pod
    }

    fn remove_bundle(&self, id: &str) {
        fs::remove_dir_all(self.bundle(id)).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for pid in servers(self.dir.path()) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let unmount = |point: &str| Command::new("umount").arg("-l").arg(point).status();
        for point in mounts()
            .iter()
            .filter(|point| Path::new(point).starts_with(self.dir.path()))
        {
            let _ = unmount(point);
        }
    }
}

/// Returns the servers that were started for a bundle in this directory.
fn servers(dir: &Path) -> Vec<Pid> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_server = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        let mut words = arguments.trim_end_matches('\0').rsplit('\0');
        words.next() == Some("serve")
            && words
                .next()
                .is_some_and(|of| Path::new(of).starts_with(dir))
    };
    pids.filter(is_server).filter_map(Pid::from_raw).collect()
}

fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(str::to_owned).collect()
}

fn is_mounted(pod: &Path) -> bool {
    mounts()
        .iter()
        .any(|point| Path::new(point).starts_with(pod))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < TIMEOUT, "timed out: {what}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_start_removes_a_pod_whose_server_was_killed_and_whose_bundle_is_gone() {
    let Some(host) = Host::new() else { return };
    let abandoned = host.start_and_kill("a");
    host.remove_bundle("a");
    // containerd calls `delete` for this one.
    let known = host.start_and_kill("b");
    let running = host.start("c");
    eventually("the abandoned pod is removed", || !abandoned.exists());
    assert!(!is_mounted(&abandoned));
    for pod in [&known, &running] {
        assert!(pod.exists() && is_mounted(pod), "{}", pod.display());
    }
    assert_eq!(servers(&host.bundle("c")).len(), 1);
}

#[test]
fn a_pod_is_abandoned_when_a_later_one_has_its_bundle() {
    let Some(host) = Host::new() else { return };
    let abandoned = host.start_and_kill("a");
    host.remove_bundle("a");
    // The client tries again, so the path of the bundle exists, but has the address of another pod.
    let again = host.start("a");
    assert!(again.exists());
    host.start("b");
    eventually("the abandoned pod is removed", || !abandoned.exists());
    assert!(again.exists());
    assert_eq!(servers(&host.bundle("a")).len(), 1);
}

#[test]
fn starts_at_the_same_time_remove_an_abandoned_pod_and_no_other() {
    let Some(host) = Host::new() else { return };
    let abandoned = host.start_and_kill("a");
    host.remove_bundle("a");
    let ids: Vec<_> = (0..8).map(|number| format!("c{number}")).collect();
    let starts: Vec<_> = ids.iter().map(|id| host.spawn_start(id)).collect();
    let pods: Vec<_> = starts.into_iter().map(Host::end_start).collect();
    eventually("the abandoned pod is removed", || !abandoned.exists());
    for (id, pod) in ids.iter().zip(&pods) {
        eventually("the pod has a mount", || is_mounted(pod));
        assert_eq!(servers(&host.bundle(id)).len(), 1, "{id}");
    }
}

#[test]
fn an_abandoned_pod_that_cannot_be_removed_does_not_change_the_address_of_another() {
    let Some(host) = Host::new() else { return };
    let abandoned = host.start_and_kill("a");
    host.remove_bundle("a");
    // The process that removes the pod cannot be recorded.
    fs::create_dir_all(abandoned.join("cleanup.json/dir")).unwrap();
    let mut start = host.start_command("b");
    let output = start.stderr(Stdio::piped()).output().unwrap();
    // containerd reads both as one.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let address = String::from_utf8(output.stdout).unwrap();
    assert!(address.starts_with("unix://"), "{address}");
    eventually("the abandoned pod is removed", || !abandoned.exists());
}
