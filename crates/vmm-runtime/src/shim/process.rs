use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process;

use shim_reaper::{Command, ShimHandle, ShimReaper, Stdio};
use tokio::io::BufReader;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::timeout;
use vmm_protocol::{Invocation, RuntimeProcess, pidfd, to_line};

use super::{ShimProgram, terminate};
use crate::process::SIGKILL_TIMEOUT;

/// The process of a shim, with the pipes that connect it to this runtime. It is killed on drop.
#[derive(Debug)]
pub(super) struct ShimProcess {
    pub(super) shim: KillOnDrop,
    pub(super) runtime: RuntimeProcess,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: BufReader<ChildStdout>,
}

#[derive(Debug)]
pub(super) struct KillOnDrop {
    pub(super) handle: ShimHandle,
    pub(super) armed: bool,
    /// The pid of the process that spawned it. A drop in a forked child does not kill the shim.
    owner: u32,
}

impl ShimProcess {
    /// Spawns a shim for a box in `dir`, or for one of the boxes in it. `stdin` is the other end of
    /// its stdin, unless the reaper creates that pipe.
    #[cfg_attr(
        not(feature = "testing"),
        expect(unused_variables, reason = "only tests search")
    )]
    pub(super) fn spawn(
        reaper: &ShimReaper,
        mut command: Command,
        dir: &Path,
        runtime: RuntimeProcess,
        stdin: Option<ChildStdin>,
    ) -> io::Result<Self> {
        command.stdout(Stdio::piped());
        let handle = reaper.spawn(command)?;
        #[cfg(feature = "testing")]
        crate::testing::record_spawn(dir, handle.id());
        let shim = KillOnDrop {
            handle,
            armed: true,
            owner: process::id(),
        };
        let stdin = stdin.or_else(|| shim.handle.take_stdin());
        let pipes = (stdin, shim.handle.take_stdout());
        let (Some(stdin), Some(stdout)) = pipes else {
            return Err(io::Error::other("the pipes of the shim cannot be polled"));
        };
        Ok(Self {
            shim,
            runtime,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Spawns a shim that waits for one of the boxes in `boxes`.
    pub(super) fn spawn_warm(
        reaper: &ShimReaper,
        program: &ShimProgram,
        boxes: &Path,
    ) -> io::Result<Self> {
        let invocation = Invocation::Warm {
            dir: boxes.to_owned(),
        };
        let mut command = program.command(&invocation, boxes)?;
        // Without a box, it has no file for messages. The exit status shows that it has failed.
        command.stderr(Stdio::null());
        let runtime = RuntimeProcess::this()?;
        let (stdin, mut writer) = io::pipe()?;
        // The pipe is empty, so the write does not block.
        writer.write_all(&to_line(&runtime)?)?;
        let writer = process::ChildStdin::from(OwnedFd::from(writer));
        let writer = ChildStdin::from_std(writer)?;
        command.stdin(OwnedFd::from(stdin));
        Self::spawn(reaper, command, boxes, runtime, Some(writer))
    }

    pub(super) fn handle(&self) -> &ShimHandle {
        &self.shim.handle
    }

    /// Returns whether the process is alive. The reaper may notice its death later.
    pub(super) fn is_alive(&self) -> bool {
        let has_exited = self.handle().pidfd().map(pidfd::has_exited);
        self.handle().is_running() && !has_exited.unwrap_or(false)
    }

    /// Kills the shim and waits until it is reaped.
    pub(super) async fn end(self) {
        self.kill().await;
    }

    pub(super) async fn kill(&self) {
        let exit = terminate::kill(self.handle());
        if timeout(SIGKILL_TIMEOUT, exit).await.is_err() {
            tracing::error!(pid = self.handle().id(), "the shim survived SIGKILL");
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if self.armed && self.owner == process::id() {
            terminate::kill_in_background(self.handle.clone());
        }
    }
}
