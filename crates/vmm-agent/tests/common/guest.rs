//! A guest of Debian's kernel in QEMU, with the agent as its pid 1.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use pidfd_spawn::{Child, Command};
use vmm_image::GuestFiles;

use super::Host;
use super::image::{build_image, find_files};

const TIMEOUT: Duration = Duration::from_secs(120);

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
        let files = find_files()?;
        let dir = tempfile::tempdir().unwrap();
        let image = build_image(&files, dir.path());
        let socket = dir.path().join("agent.sock");
        let mut qemu = Command::new("qemu-system-x86_64")
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
                "{} panic=-1 console=ttyS0 no_timer_check {parameters}",
                GuestFiles::KERNEL_PARAMETERS
            ))
            .arg("-chardev")
            .arg(format!(
                "socket,id=agent,path={},server=on,wait=off",
                socket.display()
            ))
            .arg("-drive")
            .arg(format!(
                "file={},if=virtio,format=raw",
                image.root().display()
            ))
            .arg("-serial")
            .arg(format!("file:{}", dir.path().join("console.log").display()))
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
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
        GuestFiles::of(&self.dir.path().join("image")).root()
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
