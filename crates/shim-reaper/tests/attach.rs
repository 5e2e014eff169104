//! `attach` observes a process that belongs to another parent, and never waits for it.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::main_thread::end_main_thread;
use common::own_process::in_own_process;
use common::{
    Fixture, eventually, eventually_blocking, exits_on_eof, is_gone, is_zombie, kernel_is_at_least,
    kill, skip,
};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};
use nix::unistd::{Uid, setresuid};
use shim_reaper::{Pidfd, ReapedBy, ReaperBuilder};

in_both_modes!(
    an_attached_handle_resolves_with_the_exit_code,
    an_attached_zombie_stays_for_its_parent,
    an_attached_own_child_is_only_observed,
    attaching_to_a_missing_process_resolves_as_vanished,
    a_process_runs_although_its_main_thread_has_exited,
);

/// Another process with a child of its own. It waits for the child and then prints the exit code.
struct Family {
    parent: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// The pid of the child.
    pid: u32,
}

impl Family {
    fn new(code: i32) -> Self {
        // The grandchild exits when the test closes its end of the pipe, descriptor 3.
        let script = format!(
            "exec 3<&0 </dev/null; (read line <&3; exit {code}) & exec 3<&-; echo $!; wait $!; echo $?"
        );
        let mut parent = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = parent.stdin.take();
        let mut stdout = BufReader::new(parent.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        Self {
            parent,
            stdin,
            stdout,
            pid,
        }
    }

    fn end_child(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.flush();
        }
    }

    /// Returns the exit code that the parent got from its own wait.
    fn code_seen_by_parent(&mut self) -> i32 {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        rest.trim().parse().unwrap()
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        if !is_gone(self.pid) && !is_zombie(self.pid) {
            let _ = nix::sys::signal::kill(common::as_pid(self.pid), SIGKILL);
        }
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

async fn an_attached_handle_resolves_with_the_exit_code(builder: ReaperBuilder) {
    let pidfds = format!("{builder:?}").contains(" pidfd: true");
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut family = Family::new(33);
    let handle = fixture.reaper.attach(family.pid).unwrap();
    assert!(handle.is_running());
    assert_eq!(fixture.reaper.registered(), [family.pid]);
    fixture.sweeps(3).await;
    fixture.expect(0, 0, 1).await;

    family.end_child();
    assert_eq!(
        family.code_seen_by_parent(),
        33,
        "the parent reaps its child undisturbed"
    );
    let exit = handle.await.unwrap();
    assert_eq!(exit.reaped_by, ReapedBy::Observed);
    // On older kernels the code is lost unless a sweep finds the zombie.
    if pidfds && kernel_is_at_least(6, 15) {
        assert_eq!(exit.code(), Some(33));
    } else {
        assert!(matches!(exit.code(), None | Some(33)));
    }
    fixture.expect(0, 1, 0).await;
}

async fn an_attached_zombie_stays_for_its_parent(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut family = Family::new(5);
    let handle = fixture.reaper.attach(family.pid).unwrap();
    kill(family.parent.id(), SIGSTOP);
    family.end_child();

    let exit = handle.await.unwrap();
    assert_eq!((exit.code(), exit.reaped_by), (Some(5), ReapedBy::Observed));
    fixture.expect(0, 1, 0).await;
    fixture.sweeps(3).await;
    assert!(is_zombie(family.pid), "the parent has not waited yet");

    kill(family.parent.id(), SIGCONT);
    assert_eq!(family.code_seen_by_parent(), 5);
}

async fn an_attached_own_child_is_only_observed(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut child = common::exits_on_eof(6).spawn().unwrap();
    let handle = fixture.reaper.attach(child.id()).unwrap();
    drop(child.stdin.take());
    let exit = handle.await.unwrap();
    assert_eq!((exit.code(), exit.reaped_by), (Some(6), ReapedBy::Observed));
    fixture.sweeps(5).await;
    assert!(is_zombie(child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(6));
    fixture.expect(0, 1, 0).await;
}

async fn attaching_to_a_missing_process_resolves_as_vanished(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let handle = fixture
        .reaper
        .attach(u32::try_from(i32::MAX).unwrap())
        .unwrap();
    let exit = handle.await.unwrap();
    assert_eq!((exit.status, exit.reaped_by), (None, ReapedBy::Unknown));
    eventually("the entry is removed", || {
        fixture.reaper.stats().registered == 0
    })
    .await;
    fixture.expect(0, 1, 0).await;
}

const PROGRAM_VAR: &str = "SHIM_TEST_ENDS_ITS_MAIN_THREAD";

/// The program of the next test; passes at once otherwise.
#[test]
fn program_that_ends_its_main_thread() {
    if std::env::var_os(PROGRAM_VAR).is_none() {
        return;
    }
    std::thread::spawn(|| {
        end_main_thread();
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(5);
    });
    loop {
        std::thread::park();
    }
}

async fn a_process_runs_although_its_main_thread_has_exited(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut program = Command::new(std::env::current_exe().unwrap());
    program
        .args(["program_that_ends_its_main_thread", "--exact"])
        .env(PROGRAM_VAR, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut program = program.spawn().unwrap();
    let pid = program.id();
    eventually("the main thread exits", || is_zombie(pid)).await;

    let handle = fixture.reaper.attach(pid).unwrap();
    fixture.sweeps(5).await;
    assert_eq!(handle.try_wait(), Ok(None));
    assert_eq!(Pidfd::open(pid).unwrap().exit_status(), None);
    drop(program.stdin.take());
    assert_eq!(handle.wait().await.unwrap().code(), Some(5));
    assert_eq!(program.wait().unwrap().code(), Some(5));
}

/// procfs shows the exit code of such a process as 0.
#[test]
fn the_exit_code_of_a_process_that_may_not_be_inspected_is_unknown_until_it_is_reaped() {
    in_own_process(
        "the_exit_code_of_a_process_that_may_not_be_inspected_is_unknown_until_it_is_reaped",
        || {
            if !Uid::effective().is_root() {
                return skip("this needs root");
            }
            let mut child = exits_on_eof(7).spawn().unwrap();
            let (root, user) = (Uid::from_raw(0), Uid::from_raw(65534));
            setresuid(user, user, root).unwrap();
            let pidfd = Pidfd::open(child.id()).unwrap();
            drop(child.stdin.take());
            eventually_blocking("the process exits", || pidfd.has_exited());
            assert_eq!(pidfd.exit_status(), None);
            setresuid(root, root, root).unwrap();
            let status = pidfd.exit_status().unwrap();
            assert_eq!(status.code(), Some(7));
            child.wait().unwrap();
        },
    );
}
