use std::fs;
use std::path::{Path, PathBuf};

use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, run_shimd};

/// What an image is built from: files that only look like a kernel and an agent.
struct Parts(tempfile::TempDir);

impl Parts {
    fn new() -> Self {
        let parts = Self(tempfile::tempdir().unwrap());
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e] = 0x10;
        kernel[0x210..0x219].copy_from_slice(b"6.1.0 #1\0");
        fs::write(parts.path("vmlinuz"), kernel).unwrap();
        let mut agent = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        agent.resize(64, 0);
        agent[52] = 64;
        fs::write(parts.path("agent"), agent).unwrap();
        fs::create_dir(parts.path("modules")).unwrap();
        let builtin = "virtio_pci.ko\nvirtio_console.ko\nvirtio_blk.ko\next4.ko\noverlay.ko\n";
        fs::write(parts.path("modules/modules.builtin"), builtin).unwrap();
        fs::create_dir_all(parts.path("root/etc")).unwrap();
        parts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn build(&self, home: &PerTestBoxHome, args: &[&str]) -> CommandOutput {
        let part = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let (root, agent) = (part("root"), part("agent"));
        let (kernel, modules) = (part("vmlinuz"), part("modules"));
        let common = [
            "image",
            "build",
            "--rootfs",
            &root,
            "--agent",
            &agent,
            "--kernel",
            &kernel,
            "--modules",
            &modules,
        ];
        run_shimd(home, &[&common, args].concat())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_image_that_is_built_beside_a_daemon_is_used_at_once() {
    let (home, parts) = (PerTestBoxHome::new(), Parts::new());
    let daemon = Daemon::start(&home).await;
    assert_eq!(run_shimd(&home, &["image", "ls", "-q"]).out(), "");
    let built = parts.build(&home, &["--memory", "300", "--cpus", "2", "tiny:1"]);
    assert_eq!(built.out(), "tiny:1\n");
    let image_dir = home.path().join("images/tiny:1");
    assert_eq!(
        names(&image_dir),
        ["image.json", "initrd", "kernel", "rootfs"]
    );

    let table = run_shimd(&home, &["image", "ls"]).out();
    assert!(table.contains("tiny:1") && table.contains("MiB"), "{table}");
    let listed = run_shimd(&home, &["image", "ls", "--format", "json"]).json();
    assert_eq!(listed[0]["repository"], "tiny");
    let served = serde_json::to_value(daemon.client.image("tiny:1").await.unwrap()).unwrap();
    assert_eq!(listed[0], served);

    let request = CreateBoxRequest::of("tiny:1");
    let bx = daemon.client.create(&request).await.unwrap();
    assert_eq!((bx.memory_mib, bx.cpus), (300, 2));
    parts.build(&home, &["--memory", "400", "tiny:1"]).out();
    let bx = daemon.client.create(&request).await.unwrap();
    assert_eq!(bx.memory_mib, 400);

    let removed = run_shimd(&home, &["image", "rm", "absent", "tiny:1"]);
    assert_eq!((removed.code, &removed.out[..]), (1, "tiny:1\n"));
    assert!(removed.err.contains("absent"), "{removed:?}");
    assert!(daemon.client.create(&request).await.is_err());
    assert_eq!(names(&home.path().join("images")), [""; 0]);
    daemon.shut_down().await;
}

#[test]
fn a_build_that_fails_changes_nothing() {
    let (home, parts) = (PerTestBoxHome::new(), Parts::new());
    parts.build(&home, &["tiny"]).out();
    fs::write(parts.path("agent"), fs::read("/bin/sh").unwrap()).unwrap();
    let failed = parts.build(&home, &["tiny"]);
    assert_eq!((failed.code, &failed.out[..]), (1, ""));
    assert!(failed.err.contains("needs shared libraries"), "{failed:?}");
    assert_eq!(names(&home.path().join("images")), ["tiny"]);
    for (args, wanted) in [
        (&["../tiny"][..], "cannot be the name"),
        (&["--memory", "1", "tiny"], "128"),
        (&["--workdir", "srv", "tiny"], "working_dir"),
    ] {
        let failed = parts.build(&home, args);
        assert!(
            failed.code != 0 && failed.err.contains(wanted),
            "{failed:?}"
        );
    }
}
