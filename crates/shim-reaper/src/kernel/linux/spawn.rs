use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Child, Command};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::wait::waitpid;

use super::{Linux, as_pid};
use crate::kernel::{ProcessTable, Spawned, Target};
use crate::pipes::Pipes;
use crate::sys;

/// The most descriptors that std opens for a spawn with a fork: three pipes, and a pair of sockets.
const MAX_DESCRIPTORS_OF_STD: usize = 8;

impl Linux {
    /// Spawns a child with `pidfd-spawn`, which returns its pidfd.
    pub(super) fn spawn_native(
        &self,
        command: &mut pidfd_spawn::Command,
    ) -> io::Result<Spawned<OwnedFd>> {
        let child = command.spawn()?.into_parts();
        Ok(Spawned {
            pid: child.pid,
            pidfd: self.accept(child.pidfd),
            pipes: Pipes {
                stdin: child.stdin,
                stdout: child.stdout,
                stderr: child.stderr,
            },
        })
    }

    pub(super) fn spawn_std(
        &self,
        command: &mut Command,
        process_group: Option<i32>,
        early_pidfd: bool,
    ) -> io::Result<Spawned<OwnedFd>> {
        let early_pidfd = self.pidfds
            && (early_pidfd || sys::kernel_reaps_children())
            // Without a `fork`, std reports a directory that the child cannot enter without a wait
            // for the child. The path with a dot needs the permission to search the directory.
            && command.get_current_dir().is_none_or(|dir| dir.join(".").is_dir());
        if let Some(sockets) = early_pidfd.then(report_sockets).flatten() {
            return self.spawn_with_early_pidfd(command, process_group, sockets);
        }
        if let Some(pgroup) = process_group {
            command.process_group(pgroup);
        }
        let child = catch_panic(command)?;
        Ok(Spawned {
            pid: child.id(),
            pidfd: self.open(child.id()),
            pipes: child.into(),
        })
    }

    /// Spawns a child that opens its own pidfd before it executes the program, so that no wait can
    /// reap it before its pidfd is open.
    fn spawn_with_early_pidfd(
        &self,
        command: &mut Command,
        mut process_group: Option<i32>,
        (receiver, sender): (UnixStream, UnixStream),
    ) -> io::Result<Spawned<OwnedFd>> {
        // Creating a group cannot fail, so std does it: before the closures of the command, which may
        // make the group the foreground group of a terminal.
        if let Some(new_group) = process_group.take_if(|pgroup| *pgroup == 0) {
            command.process_group(new_group);
        }
        let sender = Arc::new(sender);
        sys::report_before_exec(command, process_group, &sender);
        let child = catch_panic(command)?;
        drop(sender);
        let report = sys::receive_report(&receiver);
        let pid = child.id();
        let pidfd = report.pidfd.map_or_else(|| self.open(pid), Ok);
        if let Some(error) = report.exec_error {
            self.reap_exiting(pid, pidfd.ok());
            return Err(error);
        }
        Ok(Spawned {
            pid,
            pidfd,
            pipes: child.into(),
        })
    }

    /// Waits until a child that is about to exit has exited, and reaps it.
    pub(super) fn reap_exiting(&self, pid: u32, pidfd: Option<OwnedFd>) {
        if let Some(pidfd) = pidfd {
            sys::pidfd_await_exit(pidfd.as_fd(), None);
            self.reap(Target::Pidfd(pid, &pidfd));
            return;
        }
        // Any other error means that a foreign wait has reaped it.
        while waitpid(as_pid(pid), None) == Err(Errno::EINTR) {}
    }
}

/// Returns sockets for the report of a child, unless std would lack descriptors for its spawn. It needs
/// none for a plain spawn without a report.
fn report_sockets() -> Option<(UnixStream, UnixStream)> {
    let sockets = UnixStream::pair().ok()?;
    let spare = (0..MAX_DESCRIPTORS_OF_STD).map(|_| sockets.0.try_clone());
    let spare: io::Result<Vec<_>> = spare.collect();
    spare.is_ok().then_some(sockets)
}

/// Spawns a child with std, which waits for a child that it cannot prepare, for example because of its
/// user ID, and panics if another wait has reaped that child.
fn catch_panic(command: &mut Command) -> io::Result<Child> {
    panic::catch_unwind(AssertUnwindSafe(|| command.spawn())).unwrap_or_else(|_| {
        Err(io::Error::other(
            "cannot prepare the process, and it was reaped by a foreign wait or because SIGCHLD is \
             ignored; use shim_reaper::Command",
        ))
    })
}
