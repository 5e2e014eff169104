//! What QEMU, which a guest could take over, may do on the host.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxInfo, BoxSpec, ConfinementRule, HostPolicy, Removal, RuntimeError, RuntimeOptions,
    UnappliedRule, VmmRuntime, with_causes,
};
use vmm_shim::{Disk, DiskAccess, Qemu, QemuOptions, Shim};

use crate::guest::{GuestFiles, checking_options, console, open_runtime, run, spec, start_up};

/// Returns the words after a name in the status of a process, `proc_pid_status(5)`.
fn status_of(pid: u32, name: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let words = line.unwrap().split_whitespace();
    words.map(str::to_owned).collect()
}

pub fn network_namespace(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/ns/net");
    fs::metadata(path).unwrap().ino()
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        crate::common::skip("this test needs root");
    }
    is_root
}

/// Returns whether the kernel of the host has no Landlock, which is then the only rule that is not applied.
fn lacks_landlock(unapplied: &[UnappliedRule]) -> bool {
    let lacks = unapplied
        .iter()
        .any(|unapplied| unapplied.rule == ConfinementRule::Landlock);
    assert_eq!(unapplied.len(), usize::from(lacks), "{unapplied:?}");
    if lacks {
        assert!(std::env::var_os("CI").is_none(), "{unapplied:?}");
        eprintln!("SKIPPED: {unapplied:?}");
    }
    lacks
}

/// Returns options whose runtime lets specs add arguments.
pub fn options_with_policy(home: &PerTestBoxHome, policy: HostPolicy) -> RuntimeOptions {
    let shim = Shim::new().engine(Qemu);
    let of_checks = policy.clone();
    checking_options(home)
        .payload_check(move |payload| shim.validate(payload, &of_checks))
        .policy(policy)
}

/// Returns the options of a guest whose QEMU opens a file that it does not need.
fn opens(file: &Path, mut guest: QemuOptions) -> QemuOptions {
    let file = file.display();
    let drive = format!("if=none,id=probe,format=raw,read-only=on,file={file}");
    guest.arguments = vec!["-drive".to_owned(), drive];
    guest
}

async fn start(runtime: &VmmRuntime, spec: BoxSpec) -> Result<BoxInfo, RuntimeError> {
    let bx = runtime.create(spec).await?;
    runtime.start(&bx.id).await
}

#[tokio::test]
async fn qemu_has_a_seccomp_filter_and_gets_no_new_privileges() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest("echo up; sleep 1000"))).await;
    let qemu = bx.payload_pid.unwrap();
    assert_eq!(status_of(qemu, "NoNewPrivs:"), ["1"]);
    // SECCOMP_MODE_FILTER.
    assert_eq!(status_of(qemu, "Seccomp:"), ["2"]);
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn each_qemu_has_a_user_and_a_network_namespace_of_its_own() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    if !is_root() {
        return;
    }
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest("echo up; sleep 1000");
    let boxes = [
        start_up(&runtime, spec(&guest)).await,
        start_up(&runtime, spec(&guest).detached(true)).await,
    ];
    for bx in &boxes {
        let (qemu, uid) = (bx.payload_pid.unwrap(), bx.uid.unwrap().to_string());
        assert_eq!(status_of(qemu, "Uid:"), vec![uid.clone(); 4]);
        assert_eq!(status_of(qemu, "Gid:"), vec![uid; 4]);
        assert!(status_of(qemu, "Groups:").is_empty());
        assert_eq!(status_of(qemu, "CapEff:"), ["0000000000000000"]);
        lacks_landlock(bx.unapplied_rules.as_ref().unwrap());
    }
    assert_ne!(boxes[0].uid, boxes[1].uid);
    let [first, second] =
        [&boxes[0], &boxes[1]].map(|bx| network_namespace(bx.payload_pid.unwrap()));
    assert_ne!(first, second);
    assert_ne!(first, network_namespace(std::process::id()));
    runtime.remove(&boxes[0].id, Removal::Force).await.unwrap();
    drop(runtime);

    // The user of a guest that outlives its runtime is not that of a later box.
    let runtime = open_runtime(&home).await;
    assert_eq!(runtime.info(&boxes[1].id).await.unwrap().uid, boxes[1].uid);
    for _ in 0..2 {
        let later = runtime.create(spec(&guest)).await.unwrap();
        assert_ne!(later.uid, boxes[1].uid);
    }
    runtime.remove(&boxes[1].id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn the_user_of_qemu_cannot_connect_to_a_socket_in_the_home() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    if !is_root() {
        return;
    }
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest("echo up; sleep 1000"))).await;
    let socket = home.path().join("shimd.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, Permissions::from_mode(0o600)).unwrap();
    let connect = |uid: u32| {
        let script = "use Socket; socket(my $s, PF_UNIX, SOCK_STREAM, 0);
            connect($s, sockaddr_un($ARGV[0])) ? print \"connected\" : print \"$!\"";
        let mut command = Command::new("perl");
        command.args(["-e", script]).arg(&socket).uid(uid).gid(uid);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(connect(0), "connected");
    let uid = &status_of(bx.payload_pid.unwrap(), "Uid:")[0];
    assert_eq!(connect(uid.parse().unwrap()), "Permission denied");
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn landlock_keeps_qemu_from_a_file_that_its_user_can_read() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let policy = HostPolicy::default().allow_arguments(true);
    let options = options_with_policy(&home, policy);
    let runtime = VmmRuntime::open(options).await.unwrap();
    let guest = files.guest("echo up; sleep 1000");
    let bx = start(&runtime, spec(&guest)).await.unwrap();
    if lacks_landlock(bx.unapplied_rules.as_ref().unwrap()) {
        return;
    }
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
    let bx = runtime
        .create(spec(&opens("/etc/passwd".as_ref(), guest)))
        .await
        .unwrap();
    runtime.start(&bx.id).await.unwrap_err();
    let output = runtime.info(&bx.id).await.unwrap().last_output.unwrap();
    assert!(
        output.contains("Could not open '/etc/passwd': Permission denied"),
        "{output}"
    );
}

#[tokio::test]
async fn rules_that_the_operator_disables_are_not_applied_and_are_shown() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let mut policy = HostPolicy::default().allow_arguments(true);
    for rule in ConfinementRule::ALL {
        policy = policy.disable(rule);
    }
    let options = options_with_policy(&home, policy);
    let runtime = VmmRuntime::open(options).await.unwrap();
    let guest = files.guest("echo up; sleep 1000");
    let bx = start_up(&runtime, spec(&opens("/etc/passwd".as_ref(), guest))).await;
    let qemu = bx.payload_pid.unwrap();
    assert_eq!(status_of(qemu, "Seccomp:"), ["0"]);
    let this = std::process::id();
    assert_eq!(status_of(qemu, "Uid:"), status_of(this, "Uid:"));
    assert_eq!(network_namespace(qemu), network_namespace(this));
    assert_eq!(bx.uid, None);
    let unapplied = bx.unapplied_rules.unwrap();
    let rules = unapplied.iter().map(|unapplied| unapplied.rule);
    assert_eq!(rules.collect::<Vec<_>>(), ConfinementRule::ALL);
    assert_eq!(unapplied[0].reason, "the operator has disabled the rule");
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn arguments_that_the_operator_does_not_permit_are_rejected_at_create() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = opens("/etc/passwd".as_ref(), QemuOptions::new("/k"));
    let error = runtime.create(spec(&guest)).await.unwrap_err();
    assert!(
        matches!(error, RuntimeError::InvalidPayload { .. }),
        "{error:?}"
    );
    let message = with_causes(&error);
    assert!(message.contains("--allow-qemu-arguments"), "{message}");
}

#[tokio::test]
async fn a_guest_has_no_network_device() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest(
        "mount -t sysfs sys /sys; grep -l ^0x02 /sys/bus/pci/devices/*/class || echo none; poweroff -f",
    );
    let ended = run(&runtime, &guest).await;
    let console = console(&ended);
    assert!(console.contains("none\r\n"), "{console}");
}

#[tokio::test]
async fn confined_qemu_uses_writable_disks_and_leaves_no_overlay() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let own = files.path("own");
    fs::write(&own, [0; 4096]).unwrap();
    let mut guest = files.guest_with_agent();
    guest.disks[0].access = DiskAccess::Overlay;
    guest
        .disks
        .push(Disk::read_only(own).access(DiskAccess::ReadWrite));
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime.create(spec(&guest)).await.unwrap();
    let bx = runtime.start(&bx.id).await.unwrap();
    // The file has no name, so none is left however QEMU ends.
    let overlays = fs::read_dir(bx.dir.join("overlays")).unwrap();
    assert_eq!(overlays.count(), 0);
    let fds = format!("/proc/{}/fd", bx.payload_pid.unwrap());
    let targets = fs::read_dir(fds).unwrap().flatten();
    let mut targets = targets.map(|fd| fs::read_link(fd.path()).unwrap_or_default());
    let is_overlay =
        |path: PathBuf| path.starts_with(&bx.dir) && path.to_string_lossy().ends_with("(deleted)");
    assert!(targets.any(is_overlay));
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}
