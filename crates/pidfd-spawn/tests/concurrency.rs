//! Many threads spawn at once.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::thread;

use common::own_process::in_own_process;
use common::{OTHER_USER, is_root, open_descriptors, own_children, shell};
use nix::libc;
use pidfd_spawn::{Command, Resource, Stdio, Step};

const THREADS: usize = 8;
const ROUNDS: usize = 20;

#[test]
fn spawns_of_many_threads_do_not_disturb_each_other() {
    in_own_process("spawns_of_many_threads_do_not_disturb_each_other", || {
        let before = open_descriptors();
        thread::scope(|scope| {
            for number in 0..THREADS {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        spawn_all(&format!("{number}-{round}"));
                    }
                });
            }
        });
        assert_eq!(own_children(), []);
        assert_eq!(open_descriptors(), before);
    });
}

fn spawn_all(id: &str) {
    let mut command = shell("echo $ID $1; ulimit -n; exit 5");
    command
        .args(["sh", id])
        .env("ID", id)
        .rlimit(Resource::Nofile, 77, 77);
    if is_root() {
        command.uid(OTHER_USER).gid(OTHER_USER);
    }
    let output = command.output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{id} {id}\n77\n")
    );
    assert_eq!(output.status.code(), Some(5));

    let error = Command::new("/nonexistent").spawn().unwrap_err();
    assert_eq!(error.step(), Step::Exec);
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));

    // The child sees the end of its input only if no other child has inherited the pipe.
    let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    assert!(cat.wait().unwrap().success());

    let mut forked = Command::new("/bin/true");
    // SAFETY: the closure does nothing.
    unsafe { forked.pre_exec(|| Ok(())) };
    assert!(forked.status().unwrap().success());
}
