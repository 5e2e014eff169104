use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Stdio;

use nix::unistd::geteuid;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{Said, serve};

#[test]
fn a_home_that_others_can_change_is_refused() {
    for mode in [0o770, 0o702, 0o1777] {
        let home = PerTestBoxHome::new();
        fs::set_permissions(home.path(), Permissions::from_mode(mode)).unwrap();
        assert_refused(&home, "chmod go-w");
    }
}

#[test]
fn a_home_of_somebody_else_is_refused() {
    if !geteuid().is_root() {
        // Only root can give a directory away.
        return;
    }
    let home = PerTestBoxHome::new();
    chown(home.path(), Some(65534), None).unwrap();
    assert_refused(&home, "belongs to the user 65534");
}

fn assert_refused(home: &PerTestBoxHome, why: &str) {
    let refused = Said::of(serve(home).stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains(why), "{refused:?}");
    let path = home.path().to_str().unwrap();
    assert!(refused.err.contains(path), "{refused:?}");
    assert!(refused.err.contains("--home"), "{refused:?}");
}
