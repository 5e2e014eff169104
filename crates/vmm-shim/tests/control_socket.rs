//! Who is served at the control socket of a shim.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use nix::unistd::geteuid;
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use support::client::Client;
use support::{Shim, skip};
use vmm_protocol::frames::{HostMessage, PayloadMessage, RequestError, RequestErrorKind, VERSION};
use vmm_shim::FILES;

#[test]
fn another_user_is_refused() {
    const NOBODY: u32 = 65534;
    if !geteuid().is_root() {
        return skip("only root can become another user");
    }
    let shim = Shim::start_loop("");
    // The user gets to the socket, which its mode does not permit.
    for (path, mode) in [
        (shim.dir.path().to_owned(), 0o755),
        (shim.path(FILES.control), 0o666),
    ] {
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            // Of this thread only, as the system call does it.
            let uid = Uid::from_raw(NOBODY);
            set_thread_res_uid(uid, uid, uid).unwrap();
            assert!(Client::connect(&shim).is_refused());
        });
    });
    assert!(!Client::connect(&shim).is_refused());
}

#[test]
fn a_client_of_another_version_gets_both_versions_and_nothing_else() {
    let shim = Shim::start_loop("");
    let mut client = Client::connect(&shim);
    let version = VERSION + 1;
    client.send(0, HostMessage::Hello { version });
    let ready = client.receive().message;
    assert!(
        matches!(
            ready,
            PayloadMessage::Ready {
                version: VERSION,
                ..
            }
        ),
        "{ready:?}"
    );
    client.exec(1, "exec-1", "exit 0");
    let PayloadMessage::Error(RequestError { kind, message }) = client.response(1) else {
        panic!("not an error");
    };
    assert_eq!(kind, RequestErrorKind::Unsupported);
    let has = |version: u32| message.contains(&format!("version {version}"));
    assert!(has(version) && has(VERSION), "{message}");
    assert_eq!(Client::connect(&shim).list(), []);
}
