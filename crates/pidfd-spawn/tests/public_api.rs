//! Every signature, field, variant and auto trait that users depend on. It compiles, or the API has a
//! break. `.ci/package` also compiles it in a crate outside of the workspace.
//!
//! Functions that are never called are tests of signatures.
#![allow(dead_code, unsafe_code)]

use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus, Output};

use pidfd_spawn::{
    Child, ChildParts, Command, Resource, SpawnError, Stdio, Step, reserve_descriptors,
};

#[test]
fn types_can_be_sent_and_shared() {
    fn is_shared<T: Debug + Send + Sync + Unpin + 'static>() {}
    is_shared::<Command>();
    is_shared::<Child>();
    is_shared::<ChildParts>();
    is_shared::<Stdio>();
    is_shared::<Step>();
    is_shared::<Resource>();
    fn is_error<T: Error + Send + Sync + 'static>() {}
    is_error::<SpawnError>();
    fn is_value<T: Copy + Eq + std::hash::Hash>() {}
    is_value::<Step>();
    is_value::<Resource>();
}

fn commands_have_the_methods_of_std(dir: &Path) -> Command {
    let mut command: Command = Command::new("true");
    let _: &mut Command = command
        .arg("x")
        .args(["y", "z"])
        .arg0("name")
        .env("KEY", "value")
        .envs([("KEY", "value")])
        .env_remove("KEY")
        .env_clear()
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .uid(1)
        .gid(1)
        .groups(&[1])
        .process_group(0)
        .setsid(true);
    // SAFETY: the closure makes no call.
    unsafe { command.pre_exec(|| Ok(())) };
    command
}

fn commands_have_what_shims_need(fd: OwnedFd, [cgroup, namespace, ruleset]: [File; 3]) -> Command {
    let mut command = Command::new("true");
    let _: &mut Command = command
        .cgroup(cgroup)
        .rlimit(Resource::Nofile, 64, u64::MAX)
        .affinity([0, 1])
        .nice(10)
        .parent_death_signal(9)
        .no_new_privs(true)
        .executable("other")
        .fd(3, fd)
        .inherit_descriptors(false)
        .inherit_signal_mask(false)
        .reset_ignored_signals(true)
        .controlling_terminal(false)
        .network_namespace(namespace)
        .landlock(ruleset);
    command
}

fn descriptors_can_be_reserved() -> io::Result<()> {
    reserve_descriptors()
}

fn commands_show_what_was_set(command: &Command) -> usize {
    let _: &OsStr = command.get_program();
    let args: Vec<&OsStr> = command.get_args().collect();
    let envs: Vec<(&OsStr, Option<&OsStr>)> = command.get_envs().collect();
    let cgroups: Vec<BorrowedFd<'_>> = command.get_cgroups().collect();
    let _: Option<&Path> = command.get_current_dir();
    args.len() + envs.len() + cgroups.len() + command.get_args().len()
}

fn commands_are_run(command: &mut Command) -> SpawnError {
    let _: Result<Child, SpawnError> = command.spawn();
    let _: io::Result<ExitStatus> = command.status();
    let _: io::Result<Output> = command.output();
    command.exec()
}

fn children_are_waited_for(mut child: Child) -> io::Result<Output> {
    let _: u32 = child.id();
    let _: BorrowedFd<'_> = child.pidfd();
    let _: BorrowedFd<'_> = child.as_fd();
    let _: io::Result<()> = child.kill();
    let _: io::Result<()> = child.send_signal(15);
    let _: io::Result<ExitStatus> = child.wait();
    let _: io::Result<Option<ExitStatus>> = child.try_wait();
    let _: Option<ChildStdin> = child.stdin.take();
    let _: Option<ChildStdout> = child.stdout.take();
    let _: Option<ChildStderr> = child.stderr.take();
    child.wait_with_output()
}

fn children_have_parts([first, second, third]: [Child; 3]) -> (u32, [OwnedFd; 3]) {
    let parts: ChildParts = first.into_parts();
    let _: Option<ChildStdin> = parts.stdin;
    let _: Option<ChildStdout> = parts.stdout;
    let _: Option<ChildStderr> = parts.stderr;
    let pidfds = [parts.pidfd, second.into_pidfd(), third.into()];
    (parts.pid, pidfds)
}

fn streams_are_made_from_what_owns_a_descriptor(
    fd: OwnedFd,
    file: File,
    sockets: (UnixStream, TcpStream),
    pipes: (ChildStdin, ChildStdout, ChildStderr),
) -> [Stdio; 9] {
    [
        fd.into(),
        file.into(),
        sockets.0.into(),
        sockets.1.into(),
        pipes.0.into(),
        pipes.1.into(),
        pipes.2.into(),
        io::stdout().into(),
        io::stderr().into(),
    ]
}

fn errors_name_the_step(error: SpawnError) -> io::Error {
    let _: Step = error.step();
    let _: &OsStr = error.program();
    let _: io::ErrorKind = error.kind();
    let _: Option<i32> = error.raw_os_error();
    error.into()
}

fn steps_can_be_matched(step: Step) -> String {
    match step {
        Step::Arguments
        | Step::Stdio
        | Step::Clone
        | Step::Pidfd
        | Step::Signals
        | Step::Cgroup
        | Step::NetworkNamespace
        | Step::Descriptors
        | Step::Rlimit
        | Step::Affinity
        | Step::Nice
        | Step::Groups
        | Step::Gid
        | Step::Uid
        | Step::CurrentDir
        | Step::ProcessGroup
        | Step::Setsid
        | Step::ControllingTerminal
        | Step::NoNewPrivs
        | Step::Landlock
        | Step::ParentDeathSignal
        | Step::PreExec
        | Step::Exec => step.to_string(),
        _ => unreachable!("the list has all variants"),
    }
}

const RESOURCES: [Resource; 16] = [
    Resource::As,
    Resource::Core,
    Resource::Cpu,
    Resource::Data,
    Resource::Fsize,
    Resource::Locks,
    Resource::Memlock,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Nofile,
    Resource::Nproc,
    Resource::Rss,
    Resource::Rtprio,
    Resource::Rttime,
    Resource::Sigpending,
    Resource::Stack,
];
