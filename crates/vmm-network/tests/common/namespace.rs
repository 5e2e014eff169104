//! Network namespaces of a test. Also compiled into the tests of other crates.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a plugin of CNI does: an interface to the network with addresses, routes and a neighbour.
const POD: &str = "
    ip link set lo up
    ip link add eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name peer netns $NETWORK
    ip link set eth0 up
    ip addr add 10.1.0.2/24 dev eth0
    ip addr add fd00:1::2/64 dev eth0 nodad
    ip route add default via 10.1.0.1
    ip route add 192.0.2.1 dev eth0 scope link
    ip route add 198.51.100.0/24 via 192.0.2.1 metric 7
    ip route add 203.0.113.0/24 via 172.31.0.1 dev eth0 onlink
    ip -6 route add default via fd00:1::1
    ip neigh add 10.1.0.1 lladdr 02:00:00:00:00:09 dev eth0";

const NETWORK: &str = "
    ip link set peer address 02:00:00:00:00:09 up
    ip addr add 10.1.0.1/24 dev peer";

/// What a guest changes in the namespace of its pod, without numbers that differ.
const STATE: &str = "ip -o link | cut -d: -f2; tc qdisc; tc filter show dev eth0 ingress";

/// A process that is killed when it is dropped.
pub(crate) struct KillOnDrop(Child);

/// A process that keeps a network namespace.
pub(crate) struct TestNamespace {
    process: KillOnDrop,
}

impl TestNamespace {
    /// Creates the namespace of a pod with the address 10.1.0.2, and one with the network that it is
    /// connected to, where 10.1.0.1 is. `None`, after a message, without root.
    pub(crate) fn create_pod() -> Option<(Self, Self)> {
        let (pod, network) = (Self::create()?, Self::create()?);
        pod.run(&format!("NETWORK={}; {POD}", network.process.0.id()));
        network.run(NETWORK);
        Some((pod, network))
    }

    /// Creates a namespace; `None`, after a message, without root.
    pub(crate) fn create() -> Option<Self> {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: this test needs root");
            return None;
        }
        let process = Command::new("unshare")
            .args(["--net", "sleep", "1000"])
            .spawn();
        let process = KillOnDrop(process.unwrap());
        let namespace = Self { process };
        let start = Instant::now();
        // Until then, the process has the namespace of the host.
        while inode(&namespace.path()) == inode(Path::new("/proc/self/ns/net")) {
            assert!(start.elapsed() < TIMEOUT, "timed out");
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(namespace)
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.process.0.id()).into()
    }

    /// Returns a command that runs in the namespace.
    fn command<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Command {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--net={}", self.path().display()));
        enter.args(command);
        enter
    }

    /// Starts a command in the namespace.
    pub(crate) fn spawn<S: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> KillOnDrop {
        let mut command = self.command(command);
        KillOnDrop(command.stdout(Stdio::null()).spawn().unwrap())
    }

    /// Runs commands of a shell in the namespace, and returns what they print.
    pub(crate) fn run(&self, script: &str) -> String {
        let output = self.command(["sh", "-ec", script]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the interfaces and the filters of the namespace of a pod.
    pub(crate) fn state(&self) -> String {
        self.run(STATE)
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}
