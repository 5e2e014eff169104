use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::skipped;
use crate::process::DEADLINE;

/// A shell in a terminal of its own, by tmux.
pub(crate) struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// `None` where there is no tmux.
    pub(crate) fn open(home: &PerTestBoxHome, width: u16, height: u16) -> Option<Self> {
        let terminal = Self {
            socket: home.path().join("tmux.sock"),
        };
        let (width, height) = (width.to_string(), height.to_string());
        let mut command = terminal.tmux();
        command
            .args([
                "-f",
                "/dev/null",
                "new-session",
                "-d",
                "-x",
                &width,
                "-y",
                &height,
            ])
            .args(["env", "PS1=$ ", "sh"])
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", home.path());
        match command.output() {
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                Some(terminal)
            }
            Err(_) => {
                skipped("there is no tmux");
                None
            }
        }
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).env_remove("TMUX");
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        let output = self.tmux().args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        output
    }

    /// Types a line.
    pub(crate) fn enter(&self, line: &str) {
        self.call(&["send-keys", "-l", line]);
        self.press("Enter");
    }

    pub(crate) fn press(&self, key: &str) {
        self.call(&["send-keys", key]);
    }

    pub(crate) fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.call(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// What can be read on it.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.call(&["capture-pane", "-p"]).stdout).unwrap()
    }

    /// The same, with its colours.
    pub(crate) fn coloured_text(&self) -> String {
        String::from_utf8(self.call(&["capture-pane", "-p", "-e"]).stdout).unwrap()
    }

    pub(crate) async fn shows(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut text = self.text();
        while !is_so(&text) {
            assert!(Instant::now() < deadline, "no sign of {what}:\n{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            text = self.text();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux().arg("kill-server").output();
    }
}
