//! Commands find the daemon and report why they cannot connect to it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, Daemon, run_shimd, shimd};

#[tokio::test]
async fn command_waits_for_a_starting_daemon() {
    let home = PerTestBoxHome::new();
    let mut list = shimd(&home);
    let list = list.args(["ps", "-q"]).stderr(Stdio::piped());
    let list = list.stdout(Stdio::piped()).spawn().unwrap();
    let daemon = Daemon::start(&home).await;
    let output = list.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    daemon.shut_down().await;
}

#[tokio::test]
async fn argument_overrides_the_environment() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let elsewhere = "http://127.0.0.1:1";
    let mut list = shimd(&home);
    list.args(["ps", "-q"]).env("SHIMD_URL", elsewhere);
    CommandOutput::of(&mut list).out();
    let both = CommandOutput::of(list.args(["--url", elsewhere]));
    assert!(both.err.contains(elsewhere), "{both:?}");

    let mut list = Command::new(env!("CARGO_BIN_EXE_shimd"));
    list.args(["ps", "-q"]).env("SHIMD_URL", elsewhere);
    let by_variables = CommandOutput::of(list.env("SHIMD_HOME", home.path()));
    assert!(by_variables.err.contains(elsewhere), "{by_variables:?}");
    daemon.shut_down().await;
}

#[tokio::test]
async fn connection_failure_is_explained() {
    let home = PerTestBoxHome::new();
    let absent = run_shimd(&home, &["ps"]);
    assert!(absent.err.contains("No such file"), "{absent:?}");
    assert!(absent.err.contains("shimd serve"), "{absent:?}");

    // Runs a copy that every user can execute, with a home that only root can open.
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), Permissions::from_mode(0o755)).unwrap();
    let program = open.path().join("shimd");
    // Copied by another process: a child that another test forks would inherit a writable
    // descriptor of the file, and execve(2) fails with ETXTBSY for such a file.
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_shimd")).arg(&program);
    assert!(copy.status().unwrap().success());
    let closed = open.path().join("closed");
    DirBuilder::new().mode(0o000).create(&closed).unwrap();
    let mut list = Command::new(program);
    list.arg("--home").arg(&closed).arg("ps").current_dir("/");
    if geteuid().is_root() {
        const NOBODY: u32 = 65534;
        list.uid(NOBODY).gid(NOBODY);
    }
    let refused = CommandOutput::of(&mut list);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("belongs to another user"),
        "{refused:?}"
    );
    assert!(!refused.err.contains("shimd serve"), "{refused:?}");
}

#[test]
fn invalid_token_is_reported_with_its_source() {
    let home = PerTestBoxHome::new();
    let file = home.path().join("token");
    fs::write(&file, "short").unwrap();
    let file = file.to_str().unwrap();
    let mut list = shimd(&home);
    list.args(["ps", "--url", "http://127.0.0.1:1"]);
    let not_utf8 = CommandOutput::of(list.env("SHIMD_TOKEN", OsStr::from_bytes(&[0xff; 32])));
    assert_eq!(not_utf8.code, 1);
    assert!(not_utf8.err.contains("SHIMD_TOKEN"), "{not_utf8:?}");
    let short = CommandOutput::of(list.args(["--token-file", file]));
    assert!(short.err.contains(file), "{short:?}");
}
