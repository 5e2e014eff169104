//! The image that the tests run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::release::Release;
use super::{Containerd, IMAGE, assert_success, run};

/// The commands of the image.
const APPLETS: [&str; 20] = [
    "cat", "echo", "env", "grep", "head", "hostname", "id", "kill", "ls", "mount", "pwd", "sh",
    "sleep", "stty", "tail", "touch", "trap", "true", "tty", "uname",
];

/// Builds an image with umoci, and imports it.
pub(super) fn import(containerd: &Containerd, files: &Path, release: Release) {
    let (layout, bundle) = (containerd.path("layout"), containerd.path("bundle"));
    let name = format!("{}:latest", layout.display());
    run(Command::new("umoci")
        .arg("init")
        .arg("--layout")
        .arg(&layout));
    run(Command::new("umoci").args(["new", "--image", &name]));
    run(Command::new("umoci")
        .args(["unpack", "--image", &name])
        .arg(&bundle));
    let root = bundle.join("rootfs");
    for dir in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(files.join("busybox"), root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    run(Command::new("umoci")
        .args(["repack", "--image", &name])
        .arg(&bundle));
    // What the sandbox of a pod runs.
    run(Command::new("umoci").args([
        "config",
        "--image",
        &name,
        "--config.cmd",
        "sleep",
        "--config.cmd",
        "infinity",
    ]));
    let archive = containerd.path("image.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&layout)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    let import = [
        "image",
        "import",
        "--snapshotter",
        "native",
        // The layout has the tag.
        "--base-name",
        IMAGE.trim_end_matches(":latest"),
    ];
    let mut command = containerd.ctr_command(import);
    command.args(release.import_options()).arg(&archive);
    assert_success(&command.output().unwrap());
}
