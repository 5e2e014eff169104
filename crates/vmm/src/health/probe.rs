use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use shim_reaper::{ShimHandle, ShimReaper, SpawnOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmm_shim::BOX_DIR_VARIABLE;

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Probe {
    /// Runs a command on the host, in the box's directory, which is also in `VMM_BOX_DIR`.
    /// Healthy if it exits with 0. One that takes too long is killed with its process group.
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

/// Where the commands of probes run: apart from the shims, whose numbers they would spoil.
#[derive(Debug, Default)]
pub(crate) struct Probes(Mutex<Option<ShimReaper>>);

impl Probes {
    fn reaper(&self) -> io::Result<ShimReaper> {
        let mut reaper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reaper) = &*reaper {
            return Ok(reaper.clone());
        }
        let started = ShimReaper::builder().start_dedicated()?;
        *reaper = Some(started.clone());
        Ok(started)
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
    let Some((program, args)) = command.split_first() else {
        return Err(io::Error::other("the probe has no command"));
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(dir)
        .env(BOX_DIR_VARIABLE, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let options = SpawnOptions::new().process_group(true);
    let process = Group(probes.reaper()?.spawn_with(command, options).await?);
    let exit = process.0.clone().await.map_err(io::Error::other)?;
    Ok(exit.success())
}

async fn ping(path: &Path) -> io::Result<bool> {
    let mut socket = UnixStream::connect(path).await?;
    socket.write_all(b"ping\n").await?;
    let mut answer = [0; 1];
    Ok(socket.read(&mut answer).await? > 0)
}

/// A process group that ends with its leader, or with this.
struct Group(ShimHandle);

impl Drop for Group {
    fn drop(&mut self) {
        // As long as its leader runs, the number of the group is its own.
        if self.0.is_running() {
            let _ = killpg(Pid::from_raw(self.0.pid().cast_signed()), Signal::SIGKILL);
        }
    }
}
