//! Tar streams from an agent and to it.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::guest::eventually;
use common::{Host, Outcome};
use pidfd_spawn::{Child, Command};
use vmm_protocol::Ending;
use vmm_protocol::frames::{
    GetSpec, HostMessage, INITIAL_CREDIT, PayloadMessage, PutSpec, RequestErrorKind,
};

fn start_agent() -> (Child, Host) {
    let (stream, other) = UnixStream::pair().unwrap();
    let agent = Command::new(env!("CARGO_BIN_EXE_vmm-agent"))
        .arg("--stdin")
        .stdin(OwnedFd::from(other))
        .parent_death_signal(nix::libc::SIGKILL)
        .spawn()
        .unwrap();
    (agent, Host::over(stream))
}

fn get(host: &mut Host, path: &Path) -> Outcome {
    host.send(1, HostMessage::Get(GetSpec::new(path)));
    host.finish(1)
}

/// Sends an archive as the credit allows.
fn put(host: &mut Host, spec: PutSpec, archive: &[u8]) -> Outcome {
    host.send(1, HostMessage::Put(spec));
    let mut credit = 0;
    for chunk in archive.chunks(32 << 10) {
        while credit < chunk.len() {
            match host.receive().message {
                PayloadMessage::Started { input_credit, .. } => credit += input_credit as usize,
                PayloadMessage::Credit { bytes } => credit += bytes as usize,
                message => panic!("{message:?}"),
            }
        }
        credit -= chunk.len();
        host.send(1, HostMessage::Stdin(chunk.to_vec()));
    }
    host.send(1, HostMessage::CloseStdin);
    host.finish(1)
}

fn failure(outcome: &Outcome) -> RequestErrorKind {
    match outcome.ending() {
        Ending::Exited { code } if *code != 0 => RequestErrorKind::from_exit_code(*code),
        ending => panic!("{ending:?}"),
    }
}

#[test]
fn a_tree_that_is_sent_back_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    // More than the credit of a stream.
    let data: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(tree.join("data"), &data).unwrap();
    fs::set_permissions(tree.join("data"), Permissions::from_mode(0o640)).unwrap();
    symlink("data", tree.join("link")).unwrap();

    let (_agent, mut host) = start_agent();
    let archive = get(&mut host, &tree);
    assert_eq!(*archive.ending(), Ending::Exited { code: 0 });
    let copy = dir.path().join("copy");
    let spec = PutSpec::new(&copy).rename_root(true);
    let outcome = put(&mut host, spec, &archive.stdout);
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(*outcome.ending(), Ending::Exited { code: 0 }, "{message}");

    assert_eq!(fs::read(copy.join("data")).unwrap(), data);
    let mode = fs::metadata(copy.join("data"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("data"));
}

#[test]
fn a_failure_has_its_kind_and_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    let (_agent, mut host) = start_agent();
    let missing = get(&mut host, Path::new("/nonexistent"));
    assert_eq!(failure(&missing), RequestErrorKind::NotFound);
    assert_eq!(missing.stderr, b"/nonexistent not found");

    let archive = get(&mut host, &dir.path().join("file")).stdout;
    let into_file = PutSpec::new(dir.path().join("file"));
    let outcome = put(&mut host, into_file, &archive);
    assert_eq!(failure(&outcome), RequestErrorKind::NotADirectory);
    let keep = PutSpec::new(dir.path()).overwrite(false);
    let outcome = put(&mut host, keep, &archive);
    assert_eq!(failure(&outcome), RequestErrorKind::Exists);
    let outcome = put(&mut host, PutSpec::new(dir.path()), &[7; 2048]);
    assert_eq!(failure(&outcome), RequestErrorKind::Invalid);
}

#[test]
fn a_transfer_waits_for_a_slow_reader_and_can_be_killed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), vec![0; 4 << 20]).unwrap();
    let (_agent, mut host) = start_agent();
    let spec = GetSpec::new(dir.path().join("data"));
    host.send(1, HostMessage::Get(spec));
    let mut pid = 0;
    let mut received = 0;
    while received < INITIAL_CREDIT as usize {
        match host.receive().message {
            PayloadMessage::Started {
                pid: of_transfer, ..
            } => pid = of_transfer,
            PayloadMessage::Stdout(data) => received += data.len(),
            message => panic!("{message:?}"),
        }
    }
    // The next message is not data: the credit is used up.
    host.send(0, HostMessage::Ping { token: 1 });
    assert_eq!(host.receive().message, PayloadMessage::Pong { token: 1 });

    host.send(1, HostMessage::signal(9));
    host.grant(1, 8 << 20);
    assert_eq!(*host.finish(1).ending(), Ending::Signaled { signal: 9 });
    eventually(|| (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
}

#[test]
fn an_agent_reports_the_memory_and_processes_of_its_machine() {
    let (agent, mut host) = start_agent();
    host.send(3, HostMessage::Stats);
    let PayloadMessage::Stats(stats) = host.receive().message else {
        panic!("not the stats of agent {}", agent.id());
    };
    assert!(stats.memory_available_bytes < stats.memory_total_bytes);
    assert!(stats.processes >= 1, "{stats:?}");
}
