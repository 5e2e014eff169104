//! How commands find their daemon.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Daemon, Said, said, shimd};

#[tokio::test]
async fn a_daemon_that_comes_up_is_waited_for() {
    let home = PerTestBoxHome::new();
    let mut list = shimd(&home);
    let list = list.args(["ps", "-q"]).stderr(Stdio::piped());
    let list = list.stdout(Stdio::piped()).spawn().unwrap();
    let daemon = Daemon::start(&home).await;
    let output = list.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    daemon.end().await;
}

#[tokio::test]
async fn an_argument_comes_before_the_environment() {
    let home = PerTestBoxHome::new();
    let daemon = Daemon::start(&home).await;
    let elsewhere = "http://127.0.0.1:1";
    let mut list = shimd(&home);
    list.args(["ps", "-q"]).env("SHIMD_URL", elsewhere);
    Said::of(&mut list).out();
    let both = Said::of(list.args(["--url", elsewhere]));
    assert!(both.err.contains(elsewhere), "{both:?}");

    let mut list = Command::new(env!("CARGO_BIN_EXE_shimd"));
    list.args(["ps", "-q"]).env("SHIMD_URL", elsewhere);
    let by_variables = Said::of(list.env("SHIMD_HOME", home.path()));
    assert!(by_variables.err.contains(elsewhere), "{by_variables:?}");
    daemon.end().await;
}

#[tokio::test]
async fn why_no_daemon_can_be_reached_is_told() {
    let home = PerTestBoxHome::new();
    let absent = said(&home, &["ps"]);
    assert!(absent.err.contains("No such file"), "{absent:?}");
    assert!(absent.err.contains("shimd serve"), "{absent:?}");

    // A copy that anybody can execute, at a home that nobody but root can enter.
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), Permissions::from_mode(0o755)).unwrap();
    let program = open.path().join("shimd");
    // By another process: what this one forks meanwhile would hold on to a file that is written to,
    // which cannot be executed, execve(2).
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
    let refused = Said::of(&mut list);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("may not be opened"), "{refused:?}");
    assert!(!refused.err.contains("shimd serve"), "{refused:?}");
}

#[test]
fn a_token_that_is_none_is_told_with_its_place() {
    let home = PerTestBoxHome::new();
    let file = home.path().join("token");
    fs::write(&file, "short").unwrap();
    let file = file.to_str().unwrap();
    let mut list = shimd(&home);
    list.args(["ps", "--url", "http://127.0.0.1:1"]);
    let no_text = Said::of(list.env("SHIMD_TOKEN", OsStr::from_bytes(&[0xff; 32])));
    assert_eq!(no_text.code, 1);
    assert!(no_text.err.contains("SHIMD_TOKEN"), "{no_text:?}");
    let short = Said::of(list.args(["--token-file", file]));
    assert!(short.err.contains(file), "{short:?}");
}
