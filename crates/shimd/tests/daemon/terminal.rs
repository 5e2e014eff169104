use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use vmm_runtime::testing::PerTestBoxHome;

use crate::fixture::skip;
use crate::process::TEST_TIMEOUT;

/// A shell in a tmux terminal.
pub(crate) struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Opens a terminal. Returns `None` if tmux is not installed.
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
                skip("tmux is not installed");
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

    /// Types a line and presses Enter.
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

    /// Returns the text on the screen.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.call(&["capture-pane", "-p"]).stdout).unwrap()
    }

    /// Returns the text on the screen with its colours.
    pub(crate) fn coloured_text(&self) -> String {
        String::from_utf8(self.call(&["capture-pane", "-p", "-e"]).stdout).unwrap()
    }

    /// Waits until the screen matches. Panics after [`TEST_TIMEOUT`].
    pub(crate) async fn wait_for(&self, what: &str, matches: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut text = self.text();
        while !matches(&text) {
            assert!(
                Instant::now() < deadline,
                "the terminal does not show {what}:\n{text}"
            );
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
