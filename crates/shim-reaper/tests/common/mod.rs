//! Helpers that the tests share: child processes, their state in `/proc`, and a reaper with its
//! counters.
#![allow(
    clippy::unwrap_used,
    dead_code, // Each test file uses a different part.
    missing_debug_implementations,
    unreachable_pub,
    unsafe_code
)]

pub mod control_group;
pub mod forks;
pub mod groups;
pub mod io_uring;
pub mod log_counter;
pub mod main_thread;
pub mod own_process;
pub mod recorder;
pub mod recycled_pid;
pub mod seccomp;

use std::env;
use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use shim_reaper::{MetricsSink, ReaperBuilder, ShimReaper};

use recorder::{Recorder, sums_of};

/// The time limit of every wait. It is far longer than any step takes on a busy machine, so that
/// only a failing test reaches it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Reports that a test cannot test here. Fails in CI, where it must.
pub fn skip(why: &str) {
    assert!(env::var_os("CI").is_none(), "cannot test: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Runs an async test of a [`ReaperBuilder`] twice: with pidfds, and as on a kernel without them.
#[macro_export]
macro_rules! in_both_modes {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn with_pidfds() {
                super::$name(shim_reaper::ShimReaper::builder().pidfd(true)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn without_pidfds() {
                super::$name(shim_reaper::ShimReaper::builder().pidfd(false)).await;
            }
        }
    )+};
}

/// A reaper, and metrics that must agree with its stats.
pub struct Fixture {
    pub reaper: ShimReaper,
    pub sink: MetricsSink,
    pub recorder: Arc<Recorder>,
}

impl Fixture {
    pub fn new(builder: ReaperBuilder) -> Self {
        Self::start(builder, ReaperBuilder::start)
    }

    pub fn start(builder: ReaperBuilder, start: impl FnOnce(ReaperBuilder) -> ShimReaper) -> Self {
        let recorder = Arc::new(Recorder::default());
        let reaper = start(builder.metrics(Arc::clone(&recorder)));
        Self {
            reaper,
            sink: recorder.sink.clone(),
            recorder,
        }
    }

    fn counts(&self) -> [(u64, u64, u64); 2] {
        let stats = self.reaper.stats();
        [
            (stats.reaped_total, stats.vanished_total, stats.registered),
            (
                self.sink.reaped_total.load(Relaxed),
                self.sink.vanished_total.load(Relaxed),
                self.sink.registered_now.load(Relaxed),
            ),
        ]
    }

    /// Waits until the stats and the sink both show these numbers.
    pub async fn expect(&self, reaped: u64, vanished: u64, registered: u64) {
        let expected = [(reaped, vanished, registered); 2];
        let deadline = Instant::now() + DEADLINE;
        while self.counts() != expected {
            assert!(
                Instant::now() < deadline,
                "(reaped, vanished, registered) in stats and sink: {:?}, expected {:?}",
                self.counts(),
                expected,
            );
            pause().await;
        }
        self.expect_reports().await;
    }

    /// Waits until the reaper has reported all that its stats show.
    pub async fn expect_reports(&self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (stats, mut recorded) = (self.reaper.stats(), self.recorder.sums());
            recorded.retain(|_, sum| *sum != 0);
            if recorded == sums_of(&stats) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "recorded {recorded:?}, expected {stats:?}"
            );
            pause().await;
        }
    }

    /// Waits until `count` interval sweeps have begun and completed.
    pub async fn sweeps(&self, count: u64) {
        // One sweep may already be in progress.
        let target = self.reaper.stats().sweeps_completed + count + 1;
        eventually("the sweeps complete", || {
            self.reaper.stats().sweeps_completed >= target
        })
        .await;
    }
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
        .stdout(Stdio::null())
        // A test in its own process that fails would otherwise wait for its children.
        .stderr(Stdio::null());
    command
}

/// Returns a command that exits with `code` at once.
pub fn exits_with(code: i32) -> Command {
    shell(&format!("exit {code}"))
}

/// Returns a command that exits with `code` when its stdin, a pipe, is closed.
pub fn exits_on_eof(code: i32) -> Command {
    let mut command = shell(&format!("read line; exit {code}"));
    command.stdin(Stdio::piped());
    command
}

pub fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

/// Spawns a child, drops its `Child`, and returns its pid.
pub fn spawn_and_forget(mut command: Command) -> u32 {
    let child = command.spawn().unwrap();
    let pid = child.id();
    drop(child);
    pid
}

/// Returns the state letter from `/proc`, or `None` when no process has the pid.
pub fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')').unwrap() + 2..].chars().next()
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

/// Returns whether a wait by other code in this process could still reap this child. Reaps nothing.
pub fn is_waitable(pid: u32) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    waitid(
        Id::Pid(as_pid(pid)),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT,
    )
    .is_ok()
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
