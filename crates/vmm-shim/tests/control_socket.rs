//! Who is served at the control socket of a shim.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs::{Permissions, set_permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;

use nix::unistd::geteuid;
use rustix::process::{Pid, Resource, Rlimit, Uid, prlimit};
use rustix::thread::set_thread_res_uid;
use support::client::Client;
use support::{LOOP, Shim, sh, skip, spec};
use vmm_protocol::frames::{HostMessage, PayloadMessage, RequestError, RequestErrorKind, VERSION};
use vmm_protocol::procfs::status_field;
use vmm_shim::{FILES, Report};

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
fn clients_wait_while_no_thread_for_them_can_start() {
    let mut shim = Shim::with_stderr(Stdio::piped());
    shim.send(&spec(sh(LOOP)).to_line().unwrap());
    assert!(matches!(shim.report(), Report::Ready { .. }));
    let pid = shim.child.id();
    let limit_memory = |current| {
        let limit = Rlimit {
            current,
            maximum: None,
        };
        prlimit(Pid::from_raw(pid.cast_signed()), Resource::As, limit).unwrap();
    };
    let size = status_field(pid, "VmSize").unwrap().unwrap();
    let size_kib: u64 = size.trim_end_matches(" kB").trim().parse().unwrap();
    // Less than the stack of a thread takes.
    limit_memory(Some((size_kib + 1024) << 10));
    let mut client = Client::connect(&shim);
    client.send(0, HostMessage::Ping { token: 1 });
    let mut line = String::new();
    let stderr = shim.child.stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut line).unwrap();
    assert!(line.contains("clients wait"), "{line}");
    limit_memory(None);
    assert_eq!(client.response(0), PayloadMessage::Pong { token: 1 });
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
