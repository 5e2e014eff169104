use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::panic;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use pidfd_spawn::{Child, Command, SpawnError, Step};
use vmm_protocol::pod::PidNamespace;

use super::early_signals;
use super::error::ContainerError;

/// More than a spawn needs.
const STACK_BYTES: usize = 64 << 10;

/// The PID namespace of each container, by its ID.
///
/// A process stays in the namespace in which it is created. So it is not `vmm-agent container` that enters that of the
/// container, but the agent, which creates this process.
#[derive(Debug, Default)]
pub(crate) struct PidNamespaces(Mutex<HashMap<String, Arc<File>>>);

impl PidNamespaces {
    /// Spawns a command of this program with these arguments. One that becomes a process of a container is created in
    /// the namespace of that.
    ///
    /// # Errors
    ///
    /// [`ContainerError::Exec`] if the command could not be spawned.
    pub(crate) fn spawn(
        &self,
        args: &[String],
        command: &mut Command,
    ) -> Result<Child, ContainerError> {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        match args[..] {
            ["container", "init", id, namespace] => {
                let namespace = serde_json::from_str(namespace);
                let namespace = namespace.map_err(ContainerError::system("parse a namespace"))?;
                self.spawn_first(id, &namespace, command)
            }
            ["container", "exec", id, _] => self.spawn_in(id, command),
            ["container", "remove", id] => {
                self.namespaces().remove(id);
                command.spawn().map_err(ContainerError::Exec)
            }
            _ => command.spawn().map_err(ContainerError::Exec),
        }
    }

    fn spawn_first(
        &self,
        id: &str,
        namespace: &PidNamespace,
        command: &mut Command,
    ) -> Result<Child, ContainerError> {
        let mut child = match namespace {
            PidNamespace::New => {
                command.inherit_signal_mask(true);
                let enter = || {
                    early_signals::block()?;
                    unshare(CloneFlags::CLONE_NEWPID)
                };
                spawn_after(enter, command)?
            }
            PidNamespace::Of(other) => self.spawn_in(other, command)?,
            _ => command.spawn().map_err(ContainerError::Exec)?,
        };
        match File::open(format!("/proc/{}/ns/pid", child.id())) {
            Ok(file) => {
                self.namespaces().insert(id.to_owned(), Arc::new(file));
                Ok(child)
            }
            Err(error) => {
                // No further process could be created beside it.
                let _ = child.kill();
                Err(ContainerError::system("open the PID namespace")(error))
            }
        }
    }

    /// Spawns a command in the namespace of a container.
    fn spawn_in(&self, id: &str, command: &mut Command) -> Result<Child, ContainerError> {
        let namespace = self.namespaces().get(id).cloned();
        let namespace = namespace.ok_or(ContainerError::NotReady)?;
        let enter = || setns(&*namespace, CloneFlags::CLONE_NEWPID);
        spawn_after(enter, command).map_err(|error| match error {
            ContainerError::Exec(error) if is_of_namespace(&error) => ContainerError::Ended(error),
            error => error,
        })
    }

    fn namespaces(&self) -> MutexGuard<'_, HashMap<String, Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the namespace takes no process any more, because its pid 1 has ended: ENOMEM in `setns(2)`.
fn is_of_namespace(error: &SpawnError) -> bool {
    error.step() == Step::Clone && error.kind() == io::ErrorKind::OutOfMemory
}

/// Spawns the command in the PID namespace that the function enters: for the children of its thread, which ends then.
fn spawn_after(
    enter: impl FnOnce() -> nix::Result<()> + Send,
    command: &mut Command,
) -> Result<Child, ContainerError> {
    let spawn = || {
        enter().map_err(ContainerError::system("enter the PID namespace"))?;
        command.spawn().map_err(ContainerError::Exec)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, spawn);
        let thread = thread.map_err(ContainerError::system("start a thread"))?;
        let spawned = thread.join();
        spawned.unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn the_pid_1_of_a_container_begins_with_early_signals_blocked() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: this test needs root");
            return;
        }
        let mut command = Command::new("sleep");
        command.arg("1000");
        let namespaces = PidNamespaces::default();
        let spawned = namespaces.spawn_first("c", &PidNamespace::New, &mut command);
        let mut child = spawned.unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let blocked = u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap();
        let blocks = |signal| blocked & 1 << (signal as u32 - 1) != 0;
        assert!(
            blocks(Signal::SIGTERM) && !blocks(Signal::SIGCHLD),
            "{status}"
        );
    }
}
