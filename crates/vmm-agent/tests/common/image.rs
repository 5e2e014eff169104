//! What a guest with the agent boots. Also compiled into the tests of the workspace.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In the order in which they are loaded.
const MODULES: [&str; 12] = [
    "pvpanic.ko",
    "pvpanic-mmio.ko",
    "virtio_ring.ko",
    "virtio.ko",
    "virtio_pci_legacy_dev.ko",
    "virtio_pci_modern_dev.ko",
    "virtio_pci.ko",
    "virtio_console.ko",
    "virtio_blk.ko",
    "overlay.ko",
    "fuse.ko",
    "virtiofs.ko",
];

/// Returns the directory with the files that guests boot; `None`, after a message, if this host cannot
/// run guests. In CI, it must.
pub(crate) fn find_files() -> Option<PathBuf> {
    let files = workspace().join("target/guest");
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

/// Returns an initial RAM file system with the agent.
pub(crate) fn build_initrd(files: &Path, dir: &Path) -> Vec<u8> {
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

/// Creates a root file system of busybox.
pub(crate) fn build_root(files: &Path, dir: &Path, image: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::create_dir_all(dir.join("etc")).unwrap();
    let busybox = dir.join("bin/busybox");
    fs::copy(files.join("busybox"), &busybox).unwrap();
    for applet in [
        "sh", "echo", "cat", "stty", "id", "sleep", "tail", "kill", "touch", "stat",
    ] {
        symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    fs::write(dir.join("etc/passwd"), "www:x:33:34::/:/bin/false\n").unwrap();
    run(Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([dir, image])
        .arg("16M"));
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output.stdout
}

/// The directory for what tests build.
fn target_dir() -> PathBuf {
    // The program of a test is in `debug/deps`.
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_owned()
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = package.ancestors();
    let mut workspaces = dirs.filter(|dir| dir.join("Cargo.lock").exists());
    workspaces.next().unwrap().to_owned()
}
