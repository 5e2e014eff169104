//! What a child can reach.
#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use common::{is_root, shell, skip, stdout_of};
use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, path_beneath_rules,
};
use nix::libc::{EACCES, EPERM};
use nix::sched::{CloneFlags, unshare};
use pidfd_spawn::{Command, Step};

/// Creates rules that permit to read and execute these files, and nothing else. Returns `None` on a kernel
/// without Landlock.
fn read_only(paths: &[&str]) -> Option<OwnedFd> {
    let readable = AccessFs::from_read(ABI::V1);
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V1))
        .unwrap()
        .create()
        .unwrap()
        .add_rules(path_beneath_rules(paths, readable))
        .unwrap()
        .into()
}

/// The directories of a shell and its libraries.
const PROGRAMS: [&str; 4] = ["/bin", "/lib", "/lib64", "/usr"];

#[test]
fn rules_of_landlock_apply_to_the_program() {
    let Some(ruleset) = read_only(&PROGRAMS) else {
        return skip("the kernel has no Landlock");
    };
    let dir = tempfile::tempdir().unwrap();
    let (secret, written) = (dir.path().join("secret"), dir.path().join("written"));
    fs::write(&secret, "secret").unwrap();
    let script = format!(
        "cat {} || echo unreadable; echo x > {} || echo unwritable",
        secret.display(),
        written.display()
    );
    let mut command = shell(&format!("exec 2>&1; {script}"));
    command.no_new_privs(true).landlock(ruleset);
    let output = stdout_of(&mut command);
    assert!(output.contains("unreadable"), "{output}");
    assert!(output.contains("unwritable"), "{output}");
    assert!(!written.exists());
}

#[test]
fn a_program_that_a_rule_forbids_does_not_start() {
    let Some(ruleset) = read_only(&["/proc"]) else {
        return skip("the kernel has no Landlock");
    };
    let mut command = Command::new("/bin/true");
    let error = command.no_new_privs(true).landlock(ruleset).spawn();
    let error = error.unwrap_err();
    assert_eq!(
        (error.step(), error.raw_os_error()),
        (Step::Exec, Some(EACCES))
    );
}

#[test]
fn a_descriptor_of_the_child_does_not_replace_its_rules() {
    let Some(ruleset) = read_only(&PROGRAMS) else {
        return skip("the kernel has no Landlock");
    };
    let number = ruleset.as_raw_fd();
    let mut command = shell("cat /proc/self/status");
    command
        .no_new_privs(true)
        .landlock(ruleset)
        .fd(number, File::open("/dev/null").unwrap());
    assert!(!command.output().unwrap().status.success());
}

#[test]
fn a_child_in_another_network_namespace_has_its_interfaces() {
    if !is_root() {
        return skip("a network namespace needs root");
    }
    let namespace = match empty_network_namespace() {
        Err(error) if error.raw_os_error() == Some(EPERM) => {
            return skip("the host forbids namespaces");
        }
        result => result.unwrap(),
    };
    let inode = namespace.metadata().unwrap().ino();
    assert_ne!(inode, fs::metadata("/proc/self/ns/net").unwrap().ino());
    let mut command = shell("stat -Lc %i /proc/self/ns/net; cat /proc/net/dev");
    let output = stdout_of(command.network_namespace(namespace));
    let lines: Vec<&str> = output.lines().collect();
    // The namespace, two lines of headings, and the loopback interface.
    assert_eq!(
        (lines.len(), lines[0]),
        (4, &*inode.to_string()),
        "{output}"
    );
    assert!(lines[3].contains("lo:"), "{output}");
}

fn empty_network_namespace() -> io::Result<File> {
    let create = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    };
    thread::spawn(create).join().unwrap()
}

#[test]
fn a_file_that_is_not_a_network_namespace_is_an_error() {
    let file = File::open("/dev/null").unwrap();
    let error = Command::new("true").network_namespace(file).spawn();
    assert_eq!(error.unwrap_err().step(), Step::NetworkNamespace);
}
