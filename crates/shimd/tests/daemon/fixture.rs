//! The daemon under test, and commands that talk to it.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use vmm_rest::Client;
use vmm_rest::wire::{BoxResponse, BoxStatus};
use vmm_runtime::testing::PerTestBoxHome;

use crate::process::{eventually, kill, wait_for_exit};

/// A daemon process. Dropping it kills the process.
pub(crate) struct Daemon {
    process: Child,
    pub(crate) client: Client,
}

impl Daemon {
    pub(crate) async fn start(home: &PerTestBoxHome) -> Self {
        Self::spawn(home, serve(home)).await
    }

    /// Spawns a daemon and waits until it is ready.
    pub(crate) async fn spawn(home: &PerTestBoxHome, mut command: Command) -> Self {
        let daemon = Self {
            process: command.spawn().unwrap(),
            client: Client::unix(&home.path().join("shimd.sock")).unwrap(),
        };
        eventually("the daemon is ready", async || {
            daemon.client.readiness().await.is_ok_and(|it| it.ready)
        })
        .await;
        daemon
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    pub(crate) async fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.process).await
    }

    /// Shuts the daemon down with SIGTERM.
    pub(crate) async fn shut_down(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait().await;
        assert!(status.success(), "{status}");
    }

    /// Waits until a box has the status.
    pub(crate) async fn wait_until(&self, id: &str, status: BoxStatus) -> BoxResponse {
        let mut bx = None;
        eventually(&format!("{id} is {status}"), async || {
            let current = self.client.inspect(id).await.unwrap();
            let has_status = current.status == status;
            bx = Some(current);
            has_status
        })
        .await;
        bx.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns a `shimd` command without the environment variables that it reads.
pub(crate) fn shimd(home: &PerTestBoxHome) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shimd"));
    for name in [
        "SHIMD_HOME",
        "SHIMD_URL",
        "SHIMD_TOKEN",
        "RUST_LOG",
        "NO_COLOR",
        "CLICOLOR_FORCE",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
    ] {
        command.env_remove(name);
    }
    command.arg("--home").arg(home.path()).stdin(Stdio::null());
    command
}

/// Returns the command of a daemon that logs to a file in its home.
pub(crate) fn serve(home: &PerTestBoxHome) -> Command {
    let mut command = shimd(home);
    command
        .arg("serve")
        .stdout(Stdio::null())
        .stderr(open_log(home));
    command
}

pub(crate) fn open_log(home: &PerTestBoxHome) -> File {
    let log = home.path().join("log");
    File::options().create(true).append(true).open(log).unwrap()
}

pub(crate) fn read_log(home: &PerTestBoxHome) -> String {
    fs::read_to_string(home.path().join("log")).unwrap()
}

/// Runs a `shimd` command to its end.
pub(crate) fn run_shimd(home: &PerTestBoxHome, args: &[&str]) -> CommandOutput {
    CommandOutput::of(shimd(home).args(args))
}

/// The exit code and the output of a command.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl CommandOutput {
    pub(crate) fn of(command: &mut Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        Self {
            code: status.code().unwrap(),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Returns stdout. Panics unless the command succeeded without a message.
    pub(crate) fn out(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    /// Returns stdout as JSON, as [`out`](Self::out) does.
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.out()).unwrap()
    }
}

/// Reports that a test was skipped, on the real stderr, which the test harness does not capture. In
/// CI, a skipped test is a failure.
pub(crate) fn skip(why: &str) {
    let test = std::thread::current();
    let test = test.name().unwrap_or_default();
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
    assert!(env::var_os("CI").is_none(), "skipped in CI: {why}");
}

pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Returns a payload that creates a file and then ignores SIGTERM.
pub(crate) fn ignore_sigterm(up: &Path) -> [String; 3] {
    let script = format!(
        "trap '' TERM; touch {}; while :; do sleep 0.01; done",
        up.display()
    );
    ["sh".to_owned(), "-c".to_owned(), script]
}
