//! Images of files that only look like a kernel and an agent.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::unistd::{geteuid, setfsuid};
use vmm_image::{BuildError, GuestFiles, ImageBuilder};

/// A directory with a kernel, modules, an agent and a root file system.
struct Parts(tempfile::TempDir);

impl Parts {
    fn new() -> Self {
        let parts = Self(tempfile::tempdir().unwrap());
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e] = 0x10;
        kernel[0x210..0x219].copy_from_slice(b"6.1.0 #1\0");
        fs::write(parts.path("vmlinuz"), kernel).unwrap();
        fs::create_dir(parts.path("modules")).unwrap();
        let builtin = [
            "virtio_pci",
            "virtio_console",
            "virtio_blk",
            "ext4",
            "overlay",
        ];
        let builtin: String = builtin.map(|name| format!("kernel/{name}.ko\n")).concat();
        fs::write(parts.path("modules/modules.builtin"), builtin).unwrap();
        // The header of a program for x86-64 without further parts.
        let mut agent = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        agent.resize(64, 0);
        agent[52] = 64;
        fs::write(parts.path("agent"), agent).unwrap();
        let root = parts.path("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/tool"), "tool").unwrap();
        fs::set_permissions(root.join("bin/tool"), Permissions::from_mode(0o4751)).unwrap();
        symlink("tool", root.join("bin/link")).unwrap();
        fs::create_dir(root.join("dev")).unwrap();
        fs::write(root.join("dev/node"), "").unwrap();
        parts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn builder(&self, root: &str) -> ImageBuilder {
        ImageBuilder::new(self.path(root), self.path("agent"))
            .kernel(self.path("vmlinuz"))
            .modules(self.path("modules"))
    }

    fn build(&self, root: &str) -> Result<GuestFiles, BuildError> {
        let image = self.path("image");
        fs::create_dir_all(&image).unwrap();
        self.builder(root).build(&image)
    }
}

/// Returns what debugfs(8) prints about a file in a file system.
fn inspect(image: &Path, request: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", request])
        .arg(image)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_directory_becomes_a_root_file_system_with_its_modes() {
    let parts = Parts::new();
    let files = parts.build("root").unwrap();
    assert_eq!(inspect(&files.root(), "cat /bin/tool"), "tool");
    let tool = inspect(&files.root(), "stat /bin/tool");
    assert!(tool.contains("Mode:  04751"), "{tool}");
    assert!(inspect(&files.root(), "stat /bin/link").contains("\"tool\""));
    let initrd = fs::read(files.initrd()).unwrap();
    assert!(initrd.starts_with(b"070701"));
    assert_eq!(
        fs::read(files.kernel()).unwrap(),
        fs::read(parts.path("vmlinuz")).unwrap()
    );
    // Free space of the file system takes no space on the disk.
    assert!(fs::metadata(files.root()).unwrap().blocks() * 512 < 16 << 20);
}

#[test]
fn an_archive_keeps_its_owners_for_root_and_loses_its_devices() {
    let parts = Parts::new();
    let status = Command::new("tar")
        .args([
            "--create",
            "--gzip",
            "--owner=1234",
            "--group=2345",
            "--file",
        ])
        .arg(parts.path("root.tar.gz"))
        .arg("--directory")
        .arg(parts.path("root"))
        .arg(".")
        .status();
    assert!(status.unwrap().success());
    let files = parts.build("root.tar.gz").unwrap();
    let tool = inspect(&files.root(), "stat /bin/tool");
    let owner = fs::metadata(parts.path("root")).unwrap().uid();
    let owner = if owner == 0 { 1234 } else { owner };
    assert!(tool.contains(&format!("User:  {owner:>4}")), "{tool}");
    assert!(tool.contains("Mode:  04751"), "{tool}");
    let devices = inspect(&files.root(), "ls /dev");
    assert!(!devices.contains("node"), "{devices}");
    let names = fs::read_dir(parts.path("image")).unwrap();
    assert_eq!(names.count(), 3);
}

#[test]
fn an_archive_with_a_read_only_directory_is_removed_without_root() {
    let parts = Parts::new();
    let bin = parts.path("root/bin");
    fs::set_permissions(&bin, Permissions::from_mode(0o555)).unwrap();
    let is_root = geteuid().is_root();
    let user = if is_root { 65534 } else { geteuid().as_raw() };
    let status = Command::new("tar")
        .arg("--create")
        .arg(format!("--owner={user}"))
        .arg("--file")
        .arg(parts.path("root.tar"))
        .arg("--directory")
        .arg(parts.path("root"))
        .arg(".")
        .status();
    assert!(status.unwrap().success());
    fs::create_dir(parts.path("image")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            if is_root {
                for dir in [parts.path(""), parts.path("image")] {
                    chown(&dir, Some(user), None).unwrap();
                }
                // Only this thread then lacks the privileges of root over files, capabilities(7).
                setfsuid(user.into());
            }
            let files = parts.build("root.tar").unwrap();
            assert!(inspect(&files.root(), "stat /bin").contains("Mode:  0555"));
        });
    });
    let names = fs::read_dir(parts.path("image")).unwrap();
    assert_eq!(names.count(), 3);
    fs::set_permissions(&bin, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_image_of_a_container_becomes_a_root_file_system() {
    let parts = Parts::new();
    let layout = parts.path("layout");
    let tagged = format!("{}:latest", layout.display());
    for args in [
        vec!["init", "--layout", layout.to_str().unwrap()],
        vec!["new", "--image", &tagged],
        vec![
            "insert",
            "--image",
            &tagged,
            parts.path("root").to_str().unwrap(),
            "/",
        ],
        vec![
            "unpack",
            "--rootless",
            "--image",
            &tagged,
            parts.path("bundle").to_str().unwrap(),
        ],
    ] {
        let Ok(output) = Command::new("umoci").args(&args).output() else {
            let is_ci = std::env::var_os("CI").is_some();
            assert!(!is_ci, "this test needs umoci");
            return eprintln!("SKIPPED: this test needs umoci");
        };
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
    }
    for (wrong, remedy) in [("layout", "umoci unpack"), ("bundle", "rootfs")] {
        let error = parts.build(wrong).unwrap_err().to_string();
        assert!(error.contains(remedy), "{error}");
    }
    let files = parts.build("bundle/rootfs").unwrap();
    assert_eq!(inspect(&files.root(), "cat /bin/tool"), "tool");
    let tool = inspect(&files.root(), "stat /bin/tool");
    assert!(tool.contains("Mode:  04751"), "{tool}");
}

#[test]
fn a_root_file_system_of_many_files_fits() {
    let parts = Parts::new();
    let root = parts.path("root");
    for dir in 0..20 {
        let dir = root.join(format!("dir-{dir}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..250 {
            fs::write(dir.join(format!("{file}")), "x").unwrap();
        }
    }
    fs::write(root.join("large"), vec![1; 100 << 20]).unwrap();
    let files = parts.build("root").unwrap();
    assert_eq!(inspect(&files.root(), "cat /dir-19/249"), "x");
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    let parts = Parts::new();
    let error_of = |root: &str| parts.build(root).unwrap_err().to_string();
    assert!(error_of("absent").contains("absent"));
    let error = error_of("agent");
    assert!(
        error.contains("tar failed") && error.contains("not look like"),
        "{error}"
    );
    fs::create_dir(parts.path("layout")).unwrap();
    fs::write(parts.path("layout/oci-layout"), "{}").unwrap();
    assert!(error_of("layout").contains("umoci unpack"));
    fs::create_dir_all(parts.path("bundle/rootfs")).unwrap();
    fs::write(parts.path("bundle/config.json"), "{}").unwrap();
    assert!(error_of("bundle").contains("rootfs"));
    fs::write(parts.path("modules/modules.builtin"), "").unwrap();
    let error = parts.build("root").unwrap_err();
    assert!(matches!(&error, BuildError::ModuleNotFound { name, .. } if name == "virtio_pci"));
    fs::write(parts.path("vmlinuz"), "text").unwrap();
    let error = parts.build("root").unwrap_err();
    assert!(matches!(error, BuildError::NotAKernel { .. }), "{error}");
}
