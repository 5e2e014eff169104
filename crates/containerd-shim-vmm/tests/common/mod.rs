//! A containerd with directories and sockets of its own, for one test. It is the first one in the `PATH`: `.ci/containerd`
//! runs the tests with that of another release of Debian.
#![allow(dead_code, reason = "each test program uses a part of it")]

mod busybox;
pub(crate) mod events;
mod image;
pub(crate) mod memory;
pub(crate) mod namespace;
mod release;
pub(crate) mod terminal;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use namespace::TestNamespace;
use release::Release;

/// How long anything in a test may take. A guest boots in 2 s on an idle machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(180);

/// The image that the tests run: busybox.
pub(crate) const IMAGE: &str = "docker.io/test/busybox:latest";

/// The program that cargo has built.
const PROGRAM: &str = env!("CARGO_BIN_EXE_containerd-shim-vmm-v1");

/// The namespace of the CRI plugin.
const CRI_NAMESPACE: &str = "k8s.io";

/// A containerd, and the configuration of the runtime.
pub(crate) struct Containerd {
    dir: TempDir,
    /// That of the images and containers.
    namespace: &'static str,
    /// The program of the runtime.
    program: PathBuf,
    /// The network namespace of containerd, if it is not that of the host.
    network: Option<PathBuf>,
    process: Option<Child>,
}

impl Containerd {
    /// Starts a containerd; `None`, after a message, if this host cannot. In CI, it must.
    pub(crate) fn start() -> Option<Self> {
        Self::start_program(Path::new(PROGRAM))
    }

    /// Starts a containerd whose runtime is this program.
    pub(crate) fn start_program(program: &Path) -> Option<Self> {
        Self::start_with("default", program, None, |release, _| release.without_cri())
    }

    /// Starts a containerd with the CRI plugin, whose runtime handler is that of `dist/`.
    pub(crate) fn start_with_cri() -> Option<Self> {
        Self::start_cri(None)
    }

    /// Starts a containerd with the CRI plugin in a network namespace, where plugins of CNI configure networks.
    pub(crate) fn start_with_cri_in(network: &TestNamespace) -> Option<Self> {
        Self::start_cri(Some(network.path()))
    }

    fn start_cri(network: Option<PathBuf>) -> Option<Self> {
        let program = Path::new(PROGRAM);
        Self::start_with(CRI_NAMESPACE, program, network, |release, dir| {
            release.with_cri(&dir.join("cni"))
        })
    }

    /// Starts a containerd with an image in this namespace, and with plugins that are configured like this.
    fn start_with(
        namespace: &'static str,
        program: &Path,
        network: Option<PathBuf>,
        plugins: impl FnOnce(Release, &Path) -> String,
    ) -> Option<Self> {
        let files = image::find_files()?;
        let is_installed = |program: &str| Command::new(program).arg("--version").output().is_ok();
        let found = if rustix::process::geteuid().is_root() {
            let programs = ["ctr", "umoci"];
            let lacking = programs.into_iter().find(|program| !is_installed(program));
            lacking.map_or_else(|| Release::find().ok_or("containerd"), Err)
        } else {
            Err("root")
        };
        let release = match found {
            Ok(release) => release,
            Err(lacking) => {
                let is_ci = std::env::var_os("CI").is_some();
                assert!(!is_ci, "this test needs {lacking}");
                eprintln!("SKIPPED: this test needs {lacking}");
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let guest = image::build_image(&files, dir.path());
        let config = serde_json::json!({
            "state_dir": dir.path().join("pods"),
            "guest": {
                "engine": "qemu",
                "memory_mib": 256,
                "options": {
                    "kernel": guest.kernel(),
                    "initrd": guest.initrd(),
                    "cmdline": "quiet",
                    "accelerator": "tcg",
                    "agent": true
                }
            }
        });
        fs::write(dir.path().join("runtime.json"), config.to_string()).unwrap();
        let root = dir.path().display();
        let config = format!(
            "{}root = '{root}/root'\nstate = '{root}/state'\n{}\
             [grpc]\naddress = '{root}/containerd.sock'\n",
            release.config_version(),
            plugins(release, dir.path())
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let mut containerd = Self {
            dir,
            namespace,
            program: program.to_owned(),
            network,
            process: None,
        };
        containerd.restart();
        busybox::import(&containerd, &files, release);
        Some(containerd)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// The directory with a directory for each pod.
    pub(crate) fn pods(&self) -> PathBuf {
        self.path("pods")
    }

    /// Starts containerd, again if it has been killed.
    pub(crate) fn restart(&mut self) {
        let search = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{search}", self.program.parent().unwrap().display());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("containerd.log"))
            .unwrap();
        let mut command = match &self.network {
            None => Command::new("containerd"),
            Some(network) => {
                let mut enter = Command::new("nsenter");
                enter.arg(format!("--net={}", network.display()));
                enter.arg("containerd");
                enter
            }
        };
        let process = command
            .arg("--config")
            .arg(self.path("config.toml"))
            .env("PATH", path)
            .env("CONTAINERD_SHIM_VMM_CONFIG", self.path("runtime.json"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        eventually("containerd serves", || {
            self.ctr(["version"]).status.success()
        });
    }

    /// Returns the pid of containerd.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("containerd runs").id()
    }

    /// Kills containerd.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Runs `ctr` with these arguments.
    pub(crate) fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Output {
        self.ctr_command(args).output().unwrap()
    }

    pub(crate) fn ctr_command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", self.namespace])
            .args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a container in a guest, with these options and this command.
    pub(crate) fn run(&self, id: &str, options: &[&str], command: &[&str]) -> Output {
        self.run_command(id, options, command).output().unwrap()
    }

    pub(crate) fn run_command(&self, id: &str, options: &[&str], command: &[&str]) -> Command {
        // The last of two snapshotters counts.
        let args = [
            "run",
            "--runtime",
            "io.containerd.vmm.v1",
            "--snapshotter",
            "native",
        ];
        let words = [IMAGE, id];
        self.ctr_command(
            args.iter()
                .chain(options)
                .chain(&words)
                .chain(command)
                .copied(),
        )
    }

    /// Starts a container that runs this command, and returns when it runs.
    pub(crate) fn start_container(&self, id: &str, command: &[&str]) {
        let output = self.run(id, &["--detach"], command);
        assert_success(&output);
    }

    /// Kills and deletes a container.
    pub(crate) fn remove_container(&self, id: &str) {
        self.ctr(["task", "kill", "--signal", "9", id]);
        eventually("the task is deleted", || {
            let deleted = self.ctr(["task", "delete", id]);
            deleted.status.success() || stderr(&deleted).contains("not found")
        });
        assert_success(&self.ctr(["container", "delete", id]));
    }

    /// Returns what `ctr task ls` reports of a task.
    pub(crate) fn task_status(&self, id: &str) -> Option<String> {
        let list = stdout(&self.ctr(["task", "ls"]));
        let line = list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(id))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    }

    /// Waits until nothing of a pod is left: no directory, no mount, no process.
    pub(crate) fn assert_nothing_left(&self) {
        eventually("the directories of the pods are removed", || {
            fs::read_dir(self.pods()).map_or(0, Iterator::count) == 0
        });
        eventually("the mounts are removed", || {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            !mounts.contains(&*self.pods().to_string_lossy())
        });
        eventually("the processes have ended", || self.processes().is_empty());
    }

    /// Returns the pids of the processes that serve pods: servers, shims, QEMU, virtiofsd.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let own = self.process.as_ref().map(Child::id);
        pids.filter(|pid| Some(*pid) != own)
            .filter(|pid| {
                let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let is_client = arguments.starts_with(b"ctr\0");
                !is_client && String::from_utf8_lossy(&arguments).contains(&dir)
            })
            .collect()
    }

    /// Returns the pid of the server of the only pod.
    pub(crate) fn server_pid(&self) -> u32 {
        let pids = self.processes();
        let mut servers = pids.into_iter().filter(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.ends_with(b"\0serve\0")
        });
        servers.next().expect("a server runs")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("containerd.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(30).collect();
            eprintln!("containerd.log, newest line first:\n{}", lines.join("\n"));
        }
        for id in stdout(&self.ctr(["container", "ls", "--quiet"])).lines() {
            self.ctr(["task", "delete", "--force", id]);
        }
        self.kill();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn assert_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        stdout(output),
        stderr(output)
    );
}

/// The directory with the files that guests boot.
pub(crate) fn guest_files() -> PathBuf {
    image::find_files().expect("containerd was started with them")
}

/// Waits until the condition holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < TIMEOUT, "timed out: {what}");
        sleep(Duration::from_millis(50));
    }
}
