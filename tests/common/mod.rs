//! Helpers that the tests share: boxes, child processes, and their state in `/proc`.
#![allow(dead_code)] // Each test file uses a different part.

pub mod boxes;
pub mod control_groups;
pub mod frozen_process;
pub mod log_counter;
pub mod own_process;
pub mod recycled_pid;
pub mod slow_reader;
pub mod work;

use std::env;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{self, Signal};
use nix::unistd::{ForkResult, Pid, fork};
use vmm_protocol::procfs::Stat;

/// The time limit of every wait. It is far longer than any step takes on a busy machine, so that
/// only a failing test reaches it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Reports on the real stderr, which the test harness does not capture, that this host cannot run a
/// test. In CI, a skipped test fails.
pub fn skip(why: impl Display) {
    let _ = writeln!(io::stderr(), "SKIPPED: {why}");
    assert!(env::var_os("CI").is_none(), "skipped in CI: {why}");
}

/// Waits until `condition` holds; `what` describes it in the message of a failure.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        pause().await;
    }
}

/// Does what [`eventually`] does, without a tokio runtime.
pub fn eventually_blocking(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Returns a command that runs until it is killed.
pub fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command
        .arg("1000")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Returns a command that exits with `code` at once.
pub fn exits_with(code: i32) -> Command {
    shell(&format!("exit {code}"))
}

pub fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

/// Returns the state letter from `/proc`, or `None` when no process has the pid.
pub fn state_of(pid: u32) -> Option<char> {
    Some(Stat::of(pid).ok()??.state)
}

pub fn is_zombie(pid: u32) -> bool {
    state_of(pid) == Some('Z')
}

pub fn is_gone(pid: u32) -> bool {
    state_of(pid).is_none()
}

pub fn kill(pid: u32, signal: Signal) {
    signal::kill(as_pid(pid), signal).unwrap();
}

pub fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

/// Forks a child that runs `body`, and returns its pid.
///
/// `body` may only call async-signal-safe functions, signal-safety(7).
pub fn fork_child(body: impl FnOnce()) -> u32 {
    // SAFETY: the child calls async-signal-safe functions only, and never returns.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => u32::try_from(child.as_raw()).unwrap(),
        ForkResult::Child => {
            body();
            // SAFETY: as above.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Children that are killed and reaped when this is dropped, even if the test fails.
#[derive(Default)]
pub struct KillOnDrop(pub Vec<Child>);

impl KillOnDrop {
    pub fn spawn(&mut self, mut command: Command) -> io::Result<u32> {
        let child = command.spawn()?;
        let pid = child.id();
        self.0.push(child);
        Ok(pid)
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Raises the soft limit on open files to `count`, within the hard limit.
pub fn allow_descriptors(count: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < count {
        assert!(
            hard >= count,
            "the hard limit on open files is below {count}"
        );
        setrlimit(Resource::RLIMIT_NOFILE, count, hard).unwrap();
    }
}

pub fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let name = nix::sys::utsname::uname().unwrap();
    let release = name.release().to_str().unwrap().to_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}

/// Returns how many bytes a test sends to a slow reader: 1 GiB with `VMM_LONG_TESTS`.
pub fn stream_bytes() -> u64 {
    match std::env::var_os("VMM_LONG_TESTS") {
        Some(_) => 1 << 30,
        None => 64 << 20,
    }
}
