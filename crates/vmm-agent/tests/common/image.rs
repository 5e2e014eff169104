//! What a guest with the agent boots. Also compiled into the tests of the workspace.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use vmm_image::{GuestFiles, ImageBuilder};

/// Returns the directory with the files that guests boot; `None`, after a message, if this host cannot
/// run guests. In CI, it must.
pub(crate) fn find_files() -> Option<PathBuf> {
    let files = workspace().join("target/guest");
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let lacking = if qemu.is_err() {
        "qemu-system-x86_64"
    } else if !files.join("modules/modules.builtin").exists() {
        "the files that .ci/guest-files downloads"
    } else {
        return Some(files);
    };
    let is_ci = std::env::var_os("CI").is_some();
    assert!(!is_ci, "this test needs {lacking}");
    eprintln!("SKIPPED: this test needs {lacking}");
    None
}

/// Builds the agent as a static program, as an image has it: once in a process.
pub(crate) fn static_agent() -> PathBuf {
    static AGENT: LazyLock<PathBuf> = LazyLock::new(build_static_agent);
    AGENT.clone()
}

fn build_static_agent() -> PathBuf {
    let target = "x86_64-unknown-linux-gnu";
    let flags = "-C target-feature=+crt-static -C relocation-model=static";
    // That of the test or benchmark.
    let (dir, profile) = match program_dir().file_name() {
        Some(name) if name == "release" => ("release", "release"),
        _ => ("debug", "dev"),
    };
    run(Command::new(env!("CARGO"))
        .args([
            "build",
            "--package",
            "vmm-agent",
            "--bin",
            "vmm-agent",
            "--target",
            target,
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(target_dir())
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS"));
    target_dir().join(target).join(dir).join("vmm-agent")
}

/// Builds an image with the agent and a root file system of busybox, in the directory `dir`.
pub(crate) fn build_image(files: &Path, dir: &Path) -> GuestFiles {
    let (root, image) = (dir.join("root"), dir.join("image"));
    for dir in [&root.join("bin"), &root.join("etc"), &image] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::copy(files.join("busybox"), root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "echo", "cat", "clear", "dd", "stty", "id", "sleep", "tail", "kill", "touch", "stat",
        "ls", "sync",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "www:x:33:34::/:/bin/false\n").unwrap();
    ImageBuilder::new(&root, static_agent())
        .kernel(files.join("vmlinuz"))
        .modules(files.join("modules"))
        .build(&image)
        .unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
}

/// The directory for what tests build.
fn target_dir() -> PathBuf {
    program_dir().parent().unwrap().to_owned()
}

/// The directory of a profile, such as `debug`: the program of a test is in `debug/deps`.
fn program_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(2).unwrap().to_owned()
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = package.ancestors();
    let mut workspaces = dirs.filter(|dir| dir.join("Cargo.lock").exists());
    workspaces.next().unwrap().to_owned()
}
