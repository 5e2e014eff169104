//! A shim as its runtime sees it.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    missing_debug_implementations,
    unreachable_pub
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vmm_shim::{
    ARGV0, ExitRecord, FILES, InstanceSpec, Invocation, KILL_SIGNAL, PayloadSpec, PidRecord,
    ProcessIdentity, Report,
};

/// Far longer than anything takes on a busy machine; only a broken test waits for it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How a runtime starts a shim: the program of this package, or a test that is its own shim.
pub fn command() -> Command {
    let program = match vmm_shim::can_be_shim() {
        true => std::env::current_exe().unwrap(),
        false => PathBuf::from(env!("CARGO_BIN_EXE_vmm-shim")),
    };
    command_of(program.as_path())
}

pub fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg0(ARGV0)
        .args(invocation().args())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

pub struct Shim {
    pub dir: TempDir,
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<BufReader<ChildStdout>>,
}

pub fn invocation() -> Invocation {
    Invocation::Box {
        id: "b1".into(),
        dir: "/boxes/b1".into(),
    }
}

impl Shim {
    pub fn without_spec() -> Self {
        Self::printing_to(Stdio::inherit())
    }

    pub fn printing_to(stderr: Stdio) -> Self {
        Self::started_by(command().stderr(stderr))
    }

    /// In a directory of its own.
    pub fn started_by(command: &mut Command) -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), command)
    }

    pub fn in_dir(dir: TempDir, command: &mut Command) -> Self {
        let mut child = command.current_dir(&dir).spawn().unwrap();
        Self {
            dir,
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
        }
    }

    pub fn told(text: &[u8]) -> Self {
        let mut shim = Self::without_spec();
        shim.tell(text);
        shim
    }

    pub fn tell(&mut self, text: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(text).unwrap();
    }

    pub fn of(payload: PayloadSpec) -> Self {
        Self::told(&spec(payload).to_line().unwrap())
    }

    /// A shell script as the payload, which has begun.
    pub fn running(script: &str) -> Self {
        let mut shim = Self::of(sh(&format!("{script} echo begun; {LOOP}")));
        assert!(matches!(shim.report(), Report::Ready { .. }));
        shim.eventually_prints("begun");
        shim
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn report(&mut self) -> Report {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub fn payload_pid(&self) -> u32 {
        let record = PidRecord::read(&self.path(FILES.payload_pid)).unwrap();
        record.unwrap().pid
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.path(FILES.console)).unwrap_or_default()
    }

    pub fn eventually_prints(&self, text: &str) {
        eventually(text, || self.console().contains(text));
    }

    pub fn signal(&self, signal: Signal) {
        kill(pid(self.child.id()), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the end of the shim", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn record(&self) -> ExitRecord {
        ExitRecord::read(&self.path(FILES.exit)).unwrap().unwrap()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Not SIGKILL: that would leave descendants behind.
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

pub const LOOP: &str = "while :; do sleep 0.05; done";

pub fn spec(payload: PayloadSpec) -> InstanceSpec {
    InstanceSpec {
        id: "b1".into(),
        payload,
        detached: false,
        stop_grace_ms: 60_000,
    }
}

pub fn sh(script: &str) -> PayloadSpec {
    PayloadSpec::command(["sh", "-c", script])
}

pub fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn runs(pid: u32) -> bool {
    ProcessIdentity::of(pid).unwrap().is_some()
}

/// What the payload printed behind `key=`.
pub fn printed(shim: &Shim, key: &str) -> String {
    let key = format!("{key}=");
    shim.eventually_prints(&key);
    let console = shim.console();
    let line = console.lines().find_map(|line| line.strip_prefix(&key));
    line.unwrap().to_owned()
}
