//! The daemon, and commands for it.

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

use crate::process::{end_of, eventually, kill};

/// A daemon in a process of its own; killed if the test forgets it.
pub(crate) struct Daemon {
    process: Child,
    pub(crate) client: Client,
}

impl Daemon {
    pub(crate) async fn start(home: &PerTestBoxHome) -> Self {
        Self::spawn(home, serve(home)).await
    }

    /// Returns when it answers.
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

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        end_of(&mut self.process).await
    }

    /// Ends it in order.
    pub(crate) async fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}");
    }

    pub(crate) async fn until(&self, id: &str, status: BoxStatus) -> BoxResponse {
        let mut found = None;
        eventually(&format!("{id} is {status}"), async || {
            let now = self.client.inspect(id).await.unwrap();
            let is_so = now.status == status;
            found = Some(now);
            is_so
        })
        .await;
        found.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command of `shimd`, with nothing of this environment that it would heed.
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

/// The daemon, logging to a file.
pub(crate) fn serve(home: &PerTestBoxHome) -> Command {
    let mut command = shimd(home);
    command.arg("serve").stdout(Stdio::null()).stderr(log(home));
    command
}

pub(crate) fn log(home: &PerTestBoxHome) -> File {
    let log = home.path().join("log");
    File::options().create(true).append(true).open(log).unwrap()
}

pub(crate) fn logged(home: &PerTestBoxHome) -> String {
    fs::read_to_string(home.path().join("log")).unwrap()
}

/// What a command has said.
pub(crate) fn said(home: &PerTestBoxHome, args: &[&str]) -> Said {
    Said::of(shimd(home).args(args))
}

#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
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

    /// Fails unless all went well.
    pub(crate) fn out(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.out()).unwrap()
    }
}

/// Tells that something could not be tested, past the harness that keeps what a test prints. Where
/// everything has to be tested, that is a failure.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current();
    let test = test.name().unwrap_or_default();
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
    assert!(env::var_os("CI").is_none(), "not tested: {why}");
}

pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// A payload that ignores SIGTERM, once it has made a file.
pub(crate) fn deaf(up: &Path) -> [String; 3] {
    let script = format!(
        "trap '' TERM; touch {}; while :; do sleep 0.01; done",
        up.display()
    );
    ["sh".to_owned(), "-c".to_owned(), script]
}
