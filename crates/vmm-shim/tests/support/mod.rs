//! Starts shims as a runtime does, and observes them.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    missing_debug_implementations,
    unreachable_pub
)]

pub mod client;

/// Runs the tests of a program without a test harness, and prints their names.
#[allow(unused_macros)]
macro_rules! run {
    ($($test:ident,)*) => {
        $(
            println!("test {}", stringify!($test));
            $test();
        )*
    };
}

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;
use vmm_protocol::procfs::status_field;
use vmm_shim::{
    ARGV0, Ending, ExitRecord, FILES, FailureKind, InstanceSpec, Invocation, KILL_SIGNAL,
    PayloadSpec, PidRecord, ProcessIdentity, Report,
};

/// Longer than any step takes on a busy machine. Only a failing test waits for it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Returns the command that starts a shim: the program of this package, or this test if it is its
/// own shim.
pub fn command() -> Command {
    command_of(&invocation())
}

/// Returns the command that starts a process with this invocation.
pub fn command_of(invocation: &Invocation) -> Command {
    let program = if vmm_shim::can_be_shim() {
        std::env::current_exe().unwrap()
    } else {
        PathBuf::from(env!("CARGO_BIN_EXE_vmm-shim"))
    };
    let mut command = Command::new(program);
    command
        .arg0(ARGV0)
        .args(invocation.args())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// Returns the arguments of a shim. Shims do not read the values.
pub fn invocation() -> Invocation {
    Invocation::Box {
        id: "b1".into(),
        dir: "/boxes/b1".into(),
    }
}

/// A running shim. Dropping it ends the shim and its payload.
pub struct Shim {
    pub dir: TempDir,
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<BufReader<ChildStdout>>,
}

impl Shim {
    /// Starts a shim, and sends it no spec.
    pub fn without_spec() -> Self {
        Self::with_stderr(Stdio::inherit())
    }

    /// Starts a shim with this stderr, and sends it no spec.
    pub fn with_stderr(stderr: Stdio) -> Self {
        Self::spawn(command().stderr(stderr))
    }

    /// Runs the command in a new box directory.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_in(tempfile::tempdir().unwrap(), command)
    }

    /// Runs the command in this box directory.
    pub fn spawn_in(dir: TempDir, command: &mut Command) -> Self {
        let mut child = command.current_dir(&dir).spawn().unwrap();
        Self {
            dir,
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
        }
    }

    /// Starts a shim, and sends it this input.
    pub fn with_input(input: &[u8]) -> Self {
        let mut shim = Self::without_spec();
        shim.send(input);
        shim
    }

    pub fn send(&mut self, input: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(input).unwrap();
    }

    /// Starts a shim with this payload.
    pub fn start(payload: PayloadSpec) -> Self {
        Self::with_input(&spec(payload).to_line().unwrap())
    }

    /// Starts a shim with a shell script followed by an endless loop, and waits until the loop
    /// runs.
    pub fn start_loop(script: &str) -> Self {
        let mut shim = Self::start(sh(&format!("{script} echo started; {LOOP}")));
        assert!(matches!(shim.report(), Report::Ready { .. }));
        shim.eventually_prints("started");
        shim
    }

    /// Returns the path of a file in the box directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Reads the report of the shim.
    pub fn report(&mut self) -> Report {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub fn payload_pid(&self) -> u32 {
        let record = PidRecord::read(&self.path(FILES.payload_pid)).unwrap();
        record.unwrap().pid
    }

    /// Reads `console.log`.
    pub fn console(&self) -> String {
        fs::read_to_string(self.path(FILES.console)).unwrap_or_default()
    }

    /// Waits until `console.log` contains the text.
    pub fn eventually_prints(&self, text: &str) {
        eventually(text, || self.console().contains(text));
    }

    pub fn signal(&self, signal: Signal) {
        kill(pid(self.child.id()), signal).unwrap();
    }

    /// Stops all threads of the shim.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let status = waitpid(pid(self.child.id()), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    }

    /// Waits until the shim has exited, and reaps it.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the exit of the shim", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Returns the most memory that the shim has used, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        let peak = status_field(self.child.id(), "VmHWM").unwrap().unwrap();
        peak.trim_end_matches(" kB").trim().parse().unwrap()
    }

    /// Reads the exit record.
    pub fn record(&self) -> ExitRecord {
        ExitRecord::read(&self.path(FILES.exit)).unwrap().unwrap()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // SIGKILL would leave descendants behind.
        if let Ok(None) = self.child.try_wait() {
            self.signal(KILL_SIGNAL);
            drop(self.stdin.take());
            let deadline = Instant::now() + DEADLINE;
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() >= deadline {
                    let _ = self.child.kill();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// An endless loop in a shell script.
pub const LOOP: &str = "while :; do sleep 0.05; done";

/// Returns the spec of an attached shim with this payload, and with a grace period of one minute.
pub fn spec(payload: PayloadSpec) -> InstanceSpec {
    InstanceSpec {
        stop_grace_ms: 60_000,
        ..InstanceSpec::new("b1", payload)
    }
}

/// Returns the spec of a shell script.
pub fn sh(script: &str) -> PayloadSpec {
    PayloadSpec::command(["sh", "-c", script])
}

pub fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

/// Waits until the condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Returns true if a process, other than a zombie, has this pid.
pub fn is_running(pid: u32) -> bool {
    ProcessIdentity::of(pid).unwrap().is_some()
}

/// Waits until the payload has printed a line `key=value`, and returns the value.
pub fn printed_value(shim: &Shim, key: &str) -> String {
    let key = format!("{key}=");
    shim.eventually_prints(&key);
    let console = shim.console();
    let line = console.lines().find_map(|line| line.strip_prefix(&key));
    line.unwrap().to_owned()
}

/// Asserts that the exit record contains a failure of this kind, with a message.
pub fn assert_fails(shim: &Shim, expected: FailureKind) {
    match shim.record().ending {
        Ending::Failed { kind, message } => {
            assert_eq!(kind, expected, "{message}");
            assert!(!message.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

/// Reports that a test was skipped, on the real stderr, which the test harness does not capture. In
/// CI, a skipped test is a failure.
#[allow(dead_code, reason = "not every test file skips tests")]
pub fn skip(why: &str) {
    let test = std::thread::current();
    let test = test.name().unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {why}");
}
