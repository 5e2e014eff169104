use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Stdio;

use nix::unistd::geteuid;
use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::{CommandOutput, serve};

#[test]
fn home_that_other_users_can_write_is_refused() {
    for mode in [0o770, 0o702, 0o1777] {
        let home = PerTestBoxHome::new();
        fs::set_permissions(home.path(), Permissions::from_mode(mode)).unwrap();
        assert_refused(&home, "chmod go-w");
    }
}

#[test]
fn home_of_another_user_is_refused() {
    if !geteuid().is_root() {
        // Only root can change the owner of a directory.
        return;
    }
    let home = PerTestBoxHome::new();
    chown(home.path(), Some(65534), None).unwrap();
    assert_refused(&home, "belongs to the user 65534");
}

fn assert_refused(home: &PerTestBoxHome, why: &str) {
    let refused = CommandOutput::of(serve(home).stderr(Stdio::piped()));
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains(why), "{refused:?}");
    let path = home.path().to_str().unwrap();
    assert!(refused.err.contains(path), "{refused:?}");
    assert!(refused.err.contains("--home"), "{refused:?}");
}
