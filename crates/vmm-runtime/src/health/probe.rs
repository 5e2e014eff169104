use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use shim_reaper::{Command, ShimHandle, SpawnOptions, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmm_protocol::BOX_DIR_VARIABLE;

use crate::ShimProgram;
use crate::process::process_wide_reaper;

/// A probe of a health check.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Probe {
    /// Runs a command on the host, in the box's directory, whose path is also in the variable
    /// `VMM_BOX_DIR`. Healthy if it exits with 0. Processes of its group that remain after its
    /// exit, or after the timeout, are killed. The command dies with the runtime. The [process-wide
    /// reaper](crate#process-wide-state) reaps it.
    Command {
        /// The program and its arguments.
        command: Vec<String>,
    },
    /// Connects to a Unix socket of the payload and sends `ping` and a newline. Healthy if the
    /// payload sends at least one byte: a stuck payload still accepts connections. An HTTP server
    /// also passes, because it sends an error response.
    Socket {
        /// The path of the socket, relative to the box's directory. The full path must be shorter
        /// than 108 bytes, `unix(7)`.
        path: PathBuf,
    },
}

/// The runner of probe commands.
#[derive(Debug)]
pub(crate) struct ProbeRunner {
    program: ShimProgram,
}

impl ProbeRunner {
    pub(crate) fn new(program: ShimProgram) -> Self {
        Self { program }
    }
}

/// Omits the arguments, which can contain secrets.
impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { command } => f.debug_tuple("Command").field(&command.first()).finish(),
            Self::Socket { path } => f.debug_tuple("Socket").field(path).finish(),
        }
    }
}

impl Probe {
    /// Returns whether the box is healthy. Dropping the future kills the processes of the probe.
    pub(super) async fn run(&self, dir: &Path, probes: &ProbeRunner) -> bool {
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

/// Runs a probe command and returns whether it exited with 0.
async fn run_command(command: &[String], dir: &Path, probes: &ProbeRunner) -> io::Result<bool> {
    let Some((program, args)) = command.split_first() else {
        return Err(io::Error::other("the health probe has an empty command"));
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(dir)
        .env(BOX_DIR_VARIABLE, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .inherit_descriptors(false)
        .reset_ignored_signals(true)
        .parent_death_signal(SIGKILL);
    probes.program.remove_private_env(&mut command);
    let options = SpawnOptions::new().process_group(0);
    let process = ProcessGroup(process_wide_reaper()?.spawn_with(command, options)?);
    let exit = process.0.clone().await.map_err(io::Error::other)?;
    Ok(exit.success())
}

/// Pings the payload over its socket and returns whether it responded.
async fn ping(path: &Path) -> io::Result<bool> {
    let mut socket = UnixStream::connect(path).await?;
    socket.write_all(b"ping\n").await?;
    let mut response = [0; 1];
    Ok(socket.read(&mut response).await? > 0)
}

/// A process group that is killed on drop.
struct ProcessGroup(ShimHandle);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let leader = Pid::from_raw(self.0.id().cast_signed());
        // The number of a process group cannot be reused while the group has members. So it is
        // still this group if its leader runs, or if it has members but no leader.
        if self.0.is_running() || kill(leader, None) == Err(Errno::ESRCH) {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}
