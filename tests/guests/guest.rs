//! Guests for tests: a kernel of Debian with busybox as its initial RAM file system.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_image::CpioArchive;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxSpec, HostPolicy, RuntimeOptions, VmmRuntime};
use vmm_shim::{Accelerator, Disk, Qemu, QemuOptions, Shim};

use crate::common::boxes::options;
use crate::common::pause;
use crate::image::{build_image, find_files, static_agent};

/// How long a boot may take. It takes 2 s on an idle machine.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// The files that guests boot, and a directory for initial RAM file systems.
pub struct GuestFiles {
    files: PathBuf,
    dir: TempDir,
}

impl GuestFiles {
    /// Returns `None`, and prints that the test is skipped, on a machine without QEMU or the files.
    ///
    /// With `CI` set, such a machine fails the test.
    pub fn find() -> Option<Self> {
        Self::find_in(&env::temp_dir())
    }

    /// Does what [`find`](Self::find) does, with files in the directory. For a process that is killed.
    pub fn find_in(dir: &Path) -> Option<Self> {
        let files = find_files()?;
        let dir = tempfile::tempdir_in(dir).unwrap();
        Some(Self { files, dir })
    }

    /// Returns the options of a guest that runs the agent, on a root file system of busybox.
    pub fn guest_with_agent(&self) -> QemuOptions {
        let image = build_image(&self.files, self.dir.path());
        let mut options = QemuOptions::new(image.kernel());
        options.initrd = Some(image.initrd());
        options.disks.push(Disk::read_only(image.root()));
        options.cmdline = vmm_image::GuestFiles::KERNEL_PARAMETERS.to_owned();
        options.agent = true;
        options.accelerator = Accelerator::Tcg;
        options
    }

    /// Returns the options of a guest that runs this script as its init.
    pub fn guest(&self, script: &str) -> QemuOptions {
        let mut options = QemuOptions::new(self.files.join("vmlinuz"));
        options.initrd = Some(self.initrd(script));
        // Prints no messages of the kernel but those of a panic.
        options.cmdline = "quiet".to_owned();
        options.accelerator = Accelerator::Tcg;
        options
    }

    /// Returns the options of a guest with an agent, whose initial RAM file system runs a script as its
    /// init first. The script finds busybox, and ends with `exec /agent`.
    pub fn guest_with_agent_after(&self, script: &str) -> QemuOptions {
        let mut options = self.guest_with_agent();
        let mut archive = CpioArchive::new();
        archive.add_dir("bin");
        let busybox = fs::read(self.files.join("busybox")).unwrap();
        archive.add_file("bin/busybox", 0o755, &busybox);
        archive.add_file("agent", 0o755, &fs::read(static_agent()).unwrap());
        let init = format!("#!/bin/busybox sh\n{script}\n");
        archive.add_file("init", 0o755, init.as_bytes());
        // The kernel extracts one archive after the other.
        let mut initrd = fs::read(options.initrd.unwrap()).unwrap();
        initrd.extend(archive.finish());
        let path = self.path("initrd");
        fs::write(&path, initrd).unwrap();
        options.initrd = Some(path);
        options
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Creates an initial RAM file system.
    fn initrd(&self, script: &str) -> PathBuf {
        let mut archive = CpioArchive::new();
        for dir in ["bin", "proc", "dev", "sys"] {
            archive.add_dir(dir);
        }
        let busybox = fs::read(self.files.join("busybox")).unwrap();
        archive.add_file("bin/busybox", 0o755, &busybox);
        for module in ["pvpanic.ko", "pvpanic-mmio.ko", "button.ko", "evdev.ko"] {
            let contents = fs::read(self.files.join("modules").join(module)).unwrap();
            archive.add_file(&format!("bin/{module}"), 0o644, &contents);
        }
        let prelude = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n\
            mount -t proc proc /proc\nmount -t devtmpfs dev /dev\n";
        let init = format!("{prelude}{script}\n");
        archive.add_file("init", 0o755, init.as_bytes());
        let initrd = self.path("initrd");
        fs::write(&initrd, archive.finish()).unwrap();
        initrd
    }
}

/// Returns options whose runtime checks payloads when a box is created, and cleans up after them.
pub fn checking_options(home: &PerTestBoxHome) -> RuntimeOptions {
    with_engine(options(home.path()))
}

/// Adds what a runtime needs for guests.
pub fn with_engine(options: RuntimeOptions) -> RuntimeOptions {
    let shim = || Shim::new().engine(Qemu);
    let (validator, cleaner) = (shim(), shim());
    options
        .start_timeout(BOOT_TIMEOUT)
        .payload_check(move |payload| validator.validate(payload, &HostPolicy::default()))
        .payload_cleanup(move |payload, dir| cleaner.cleanup(payload, dir))
}

pub async fn open_runtime(home: &PerTestBoxHome) -> VmmRuntime {
    VmmRuntime::open(checking_options(home)).await.unwrap()
}

pub fn spec(guest: &QemuOptions) -> BoxSpec {
    BoxSpec::of(guest.to_payload())
}

/// Starts a guest and waits until it ends.
pub async fn run(runtime: &VmmRuntime, guest: &QemuOptions) -> BoxInfo {
    let bx = runtime.create(spec(guest)).await.unwrap();
    runtime.start(&bx.id).await.unwrap();
    runtime.wait(&bx.id).await.unwrap()
}

/// Starts a guest that prints `up`, and waits until it has.
pub async fn start_up(runtime: &VmmRuntime, spec: BoxSpec) -> BoxInfo {
    let bx = runtime.create(spec).await.unwrap();
    let bx = runtime.start(&bx.id).await.unwrap();
    let deadline = Instant::now() + BOOT_TIMEOUT;
    while console(&bx).lines().all(|line| line != "up") {
        let console = console(&bx);
        assert!(
            Instant::now() < deadline,
            "the guest is not up: {console:?}"
        );
        pause().await;
    }
    bx
}

pub fn console(bx: &BoxInfo) -> String {
    let text = fs::read(bx.dir.join("console.log")).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}
