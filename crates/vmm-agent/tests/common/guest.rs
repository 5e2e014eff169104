//! A guest of Debian's kernel in QEMU, with the agent as its pid 1.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use pidfd_spawn::{Child, Command as QemuCommand};

use super::Host;

/// In the order in which they are loaded.
const MODULES: [&str; 8] = [
    "virtio_ring.ko",
    "virtio.ko",
    "virtio_pci_legacy_dev.ko",
    "virtio_pci_modern_dev.ko",
    "virtio_pci.ko",
    "virtio_console.ko",
    "virtio_blk.ko",
    "overlay.ko",
];

const TIMEOUT: Duration = Duration::from_secs(120);

/// Returns the directory with the files that guests boot; `None`, after a message, if this host cannot
/// run guests. In CI, it must.
fn files() -> Option<PathBuf> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let lacking = if qemu.is_err() {
        "qemu-system-x86_64"
    } else if !files.join("complete").exists() {
        "the files that .ci/guest-files downloads"
    } else {
        return Some(files);
    };
    let is_ci = std::env::var_os("CI").is_some();
    assert!(!is_ci, "this test needs {lacking}");
    eprintln!("SKIPPED: this test needs {lacking}");
    None
}

pub(crate) struct Guest {
    dir: tempfile::TempDir,
    qemu: Child,
}

impl Guest {
    /// Boots a guest with a root file system of busybox, and connects to its agent. Returns `None`
    /// on a host that cannot run guests.
    pub(crate) fn boot() -> Option<(Self, Host)> {
        Self::boot_with("")
    }

    /// Boots a guest with more kernel parameters.
    pub(crate) fn boot_with(parameters: &str) -> Option<(Self, Host)> {
        let files = files()?;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let initrd = path("initrd");
        fs::write(&initrd, build_initrd(&files, &path("initrd.d"))).unwrap();
        let root = path("root.ext4");
        build_root(&files, &path("root.d"), &root);
        let socket = path("agent.sock");
        let mut qemu = QemuCommand::new("qemu-system-x86_64")
            .args(
                "-M q35 -accel tcg -cpu max -m 192 -nodefaults -no-reboot -display none".split(' '),
            )
            .args(["-device", "virtio-serial-pci"])
            .args([
                "-device",
                "virtserialport,chardev=agent,name=org.vmm.agent.0",
            ])
            // On a loaded host, the kernel would find its emulated timer too slow, and panic.
            .arg("-append")
            .arg(format!(
                "quiet panic=-1 console=ttyS0 no_timer_check vmm.root=/dev/vda {parameters}"
            ))
            .arg("-chardev")
            .arg(format!(
                "socket,id=agent,path={},server=on,wait=off",
                socket.display()
            ))
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw", root.display()))
            .arg("-serial")
            .arg(format!("file:{}", path("console.log").display()))
            .arg("-kernel")
            .arg(files.join("vmlinuz"))
            .arg("-initrd")
            .arg(&initrd)
            .parent_death_signal(nix::libc::SIGKILL)
            .spawn()
            .unwrap();
        let stream = eventually(|| {
            assert!(qemu.try_wait().unwrap().is_none(), "QEMU has ended");
            UnixStream::connect(&socket).ok()
        });
        Some((Self { dir, qemu }, Host::over(stream)))
    }

    /// Returns the path of the root file system.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.path().join("root.ext4")
    }

    /// Waits until QEMU has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually(|| self.qemu.try_wait().unwrap())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if thread::panicking() {
            let console = fs::read(self.dir.path().join("console.log")).unwrap_or_default();
            eprintln!("console: {}", String::from_utf8_lossy(&console));
        }
    }
}

pub(crate) fn eventually<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < TIMEOUT, "timed out");
        thread::sleep(Duration::from_millis(10));
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output.stdout
}

fn target_dir() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_vmm-agent"));
    program.ancestors().nth(2).unwrap().to_owned()
}

/// Builds the agent as a static program, as an image has it.
fn static_agent() -> PathBuf {
    let target = "x86_64-unknown-linux-gnu";
    let flags = "-C target-feature=+crt-static -C relocation-model=static";
    run(Command::new(env!("CARGO"))
        .args([
            "build",
            "--package",
            "vmm-agent",
            "--bin",
            "vmm-agent",
            "--target",
            target,
        ])
        .arg("--target-dir")
        .arg(target_dir())
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS"));
    target_dir().join(target).join("debug/vmm-agent")
}

fn build_initrd(files: &Path, dir: &Path) -> Vec<u8> {
    fs::create_dir_all(dir.join("modules")).unwrap();
    fs::copy(static_agent(), dir.join("init")).unwrap();
    let mut order = String::new();
    for module in MODULES {
        let file = files.join("modules").join(module);
        fs::copy(file, dir.join("modules").join(module)).unwrap();
        order += &format!("{module}\n");
    }
    fs::write(dir.join("modules/order"), order).unwrap();
    let script = "find . | \"$0\" cpio -o -H newc";
    run(Command::new("sh")
        .args(["-ec", script])
        .arg(files.join("busybox").canonicalize().unwrap())
        .current_dir(dir))
}

fn build_root(files: &Path, dir: &Path, image: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::create_dir_all(dir.join("etc")).unwrap();
    let busybox = dir.join("bin/busybox");
    fs::copy(files.join("busybox"), &busybox).unwrap();
    for applet in [
        "sh", "echo", "cat", "stty", "id", "sleep", "tail", "kill", "touch", "stat",
    ] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    fs::write(dir.join("etc/passwd"), "www:x:33:34::/:/bin/false\n").unwrap();
    run(Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([dir, image])
        .arg("16M"));
}
