use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use shim_reaper::{ShimHandle, SpawnOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmm_protocol::BOX_DIR_VARIABLE;

use crate::ShimProgram;
use crate::process::caretaker;

/// What a health check does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Probe {
    /// Runs a command on the host, in the box's directory, which is also in `VMM_BOX_DIR`.
    /// Healthy if it exits with 0. What of its process group is left then, or when it takes too
    /// long, is killed. It dies with the runtime.
    Command {
        /// The program and its arguments.
        command: Vec<String>,
    },
    /// Connects to a Unix socket of the payload, says `ping` and a newline, and is healthy when
    /// anything comes back: a stuck payload still accepts connections. A server that speaks HTTP
    /// answers as well, if only to complain.
    Socket {
        /// Relative to the box's directory; shorter than 108 bytes with that, `unix(7)`.
        path: PathBuf,
    },
}

/// What runs the commands of probes.
#[derive(Debug)]
pub(crate) struct Probes {
    program: ShimProgram,
}

impl Probes {
    pub(crate) fn new(program: ShimProgram) -> Self {
        Self { program }
    }
}

/// Without the arguments, which can hold secrets.
impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { command } => f.debug_tuple("Command").field(&command.first()).finish(),
            Self::Socket { path } => f.debug_tuple("Socket").field(path).finish(),
        }
    }
}

impl Probe {
    /// Whether the box works. What a probe has started ends with the future.
    pub(super) async fn run(&self, dir: &Path, probes: &Probes) -> bool {
        let healthy = match self {
            Self::Command { command } => run_command(command, dir, probes).await,
            Self::Socket { path } => ping(&dir.join(path)).await,
        };
        healthy.unwrap_or_else(|error| {
            tracing::debug!(dir = %dir.display(), %error, "the health probe failed");
            false
        })
    }
}

async fn run_command(command: &[String], dir: &Path, probes: &Probes) -> io::Result<bool> {
    if command.is_empty() {
        return Err(io::Error::other("the probe has no command"));
    }
    let mut command = probes.program.bound_command(command);
    command
        .current_dir(dir)
        .env(BOX_DIR_VARIABLE, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let options = SpawnOptions::new().process_group(true);
    let process = Group(caretaker()?.spawn_with(command, options).await?);
    let exit = process.0.clone().await.map_err(io::Error::other)?;
    Ok(exit.success())
}

async fn ping(path: &Path) -> io::Result<bool> {
    let mut socket = UnixStream::connect(path).await?;
    socket.write_all(b"ping\n").await?;
    let mut answer = [0; 1];
    Ok(socket.read(&mut answer).await? > 0)
}

/// A process group that ends with this.
struct Group(ShimHandle);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = Pid::from_raw(self.0.pid().cast_signed());
        // As long as a group has members, nobody else gets its number: it is its own while its
        // leader runs, and when there are members without a leader.
        if self.0.is_running() || kill(leader, None) == Err(Errno::ESRCH) {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}
