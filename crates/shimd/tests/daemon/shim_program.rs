use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm_rest::wire::CreateBoxRequest;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, open_log, read_log, serve, skip};

/// Copies a program in another process: a child that another test spawns would inherit a writable descriptor of
/// the copy, and execve(2) fails with ETXTBSY for such a file.
fn copy(program: impl AsRef<OsStr>, to: &Path) {
    let status = Command::new("cp")
        .arg("--no-dereference")
        .arg(program)
        .arg(to)
        .status();
    assert!(status.unwrap().success());
}

/// Starts a daemon in a directory with this program as `vmm-shim`, starts a box of the image `idle`,
/// and returns the names of the programs of its shim and its payload.
async fn programs_beside(home: &PerTestBoxHome, vmm_shim: &Path) -> [PathBuf; 2] {
    let dir = home.path().join("bin");
    fs::create_dir(&dir).unwrap();
    let serve = serve(home);
    copy(serve.get_program(), &dir.join("shimd"));
    copy(vmm_shim, &dir.join("vmm-shim"));
    let mut command = Command::new(dir.join("shimd"));
    command.args(serve.get_args()).stderr(open_log(home));
    for (name, _) in serve.get_envs() {
        command.env_remove(name);
    }
    let daemon = Daemon::spawn(home, command).await;
    let made = daemon.client.create(&CreateBoxRequest::of("idle")).await;
    let running = daemon.client.start(&made.unwrap().box_id).await.unwrap();
    let programs = [running.pid, running.payload_pid].map(|pid| {
        let program = fs::read_link(format!("/proc/{}/exe", pid.unwrap())).unwrap();
        PathBuf::from(program.file_name().unwrap())
    });
    daemon.shut_down().await;
    programs
}

#[tokio::test]
async fn daemon_uses_the_program_vmm_shim_beside_it() {
    let program = Path::new(env!("CARGO_BIN_EXE_shimd")).with_file_name("vmm-shim");
    if !program.exists() {
        skip("vmm-shim is not built; run cargo build --package vmm-shim");
        return;
    }
    let home = PerTestBoxHome::new();
    let programs = programs_beside(&home, &program).await;
    assert_eq!(programs, ["vmm-shim", "vmm-shim"].map(PathBuf::from));
}

/// Creates a program that is a shell script.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/bash\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn daemon_uses_the_file_of_vmm_shim_whose_version_it_has_checked() {
    let home = PerTestBoxHome::new();
    let [checked, other] = ["checked", "other"].map(|name| home.path().join(name));
    let [wrapper, upgrade] = ["wrapper", "upgrade"].map(|name| home.path().join(name));
    for program in [&checked, &other] {
        copy(env!("CARGO_BIN_EXE_shimd"), program);
    }
    script(
        &upgrade,
        &format!("exec -a vmm-shim {} \"$@\"", other.display()),
    );
    // An upgrade replaces the file as soon as the check has begun.
    script(
        &wrapper,
        &format!(
            "if [ \"$1\" = --version ]; then\n  mv {} {}\n  echo vmm-shim {}\nelse\n  \
             exec -a vmm-shim {} \"$@\"\nfi",
            upgrade.display(),
            home.path().join("bin/vmm-shim").display(),
            vmm_shim::VERSION,
            checked.display(),
        ),
    );
    let [shim, _] = programs_beside(&home, &wrapper).await;
    assert_eq!(shim, Path::new("checked"));
}

#[tokio::test]
async fn daemon_does_not_use_a_vmm_shim_of_another_version() {
    let home = PerTestBoxHome::new();
    let other = home.path().join("other");
    script(&other, "echo vmm-shim 0.0.0");
    let programs = programs_beside(&home, &other).await;
    assert_eq!(programs, ["shimd", "shimd"].map(PathBuf::from));
    assert!(read_log(&home).contains("vmm-shim has another version"));
}

#[tokio::test]
async fn daemon_logs_why_it_does_not_use_a_vmm_shim_that_it_cannot_open() {
    let home = PerTestBoxHome::new();
    let own_target = home.path().join("link");
    symlink("vmm-shim", &own_target).unwrap();
    let programs = programs_beside(&home, &own_target).await;
    assert_eq!(programs, ["shimd", "shimd"].map(PathBuf::from));
    let log = read_log(&home);
    assert!(log.contains("Too many levels of symbolic links"), "{log}");
}
