use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{ESRCH, SIGKILL};
use pidfd_spawn::__private::pidfd_send_signal;
use vmm_protocol::ControlGroup;
use vmm_protocol::pidfd;
use vmm_protocol::pod::{ContainerStats, Resources};

use super::error::ContainerError;
use crate::boot::wait_for;

const ROOT: &str = "/sys/fs/cgroup";

/// How long the processes of a container may take to die of SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the processes of a container may take to freeze. One in an uninterruptible sleep freezes after it.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// The control group of a container, version 2.
pub(super) struct ContainerGroup {
    dir: PathBuf,
}

impl ContainerGroup {
    pub(super) fn of(id: &str) -> Self {
        Self {
            dir: Path::new(ROOT).join(id),
        }
    }

    /// Creates the group with its limits.
    pub(super) fn create(&self, resources: &Resources) -> Result<(), ContainerError> {
        let root = Path::new(ROOT);
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            // A limit that needs a controller which cannot be enabled is reported below.
            let _ = fs::write(
                root.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
        }
        fs::create_dir(&self.dir).map_err(ContainerError::system("create a control group"))?;
        let Resources {
            memory,
            pids,
            cpu,
            unified,
        } = resources;
        if let Some(bytes) = memory {
            self.write("memory.max", &bytes.to_string())?;
        }
        if let Some(count) = pids {
            self.write("pids.max", &count.to_string())?;
        }
        if let Some((quota, period)) = cpu {
            self.write("cpu.max", &format!("{quota} {period}"))?;
        }
        for (name, value) in unified {
            match self.write(name, value) {
                Err(error) if is_ignorable(name, &error) => {}
                written => written?,
            }
        }
        Ok(())
    }

    /// Moves this process into the group.
    pub(super) fn join(&self) -> Result<(), ContainerError> {
        self.write("cgroup.procs", "0")
    }

    /// Sends a signal to all processes of the group.
    pub(super) fn signal(&self, signal: i32) -> Result<(), ContainerError> {
        if signal == SIGKILL {
            return self.write("cgroup.kill", "1");
        }
        let pids = ControlGroup::at(&self.dir).pids();
        let pids = pids.map_err(io::Error::other);
        for pid in pids.map_err(ContainerError::system("list the processes"))? {
            match send(pid, signal) {
                Err(error) if error.raw_os_error() != Some(ESRCH) => {
                    return Err(ContainerError::system("send a signal")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Freezes all processes of the group, and waits until they are frozen.
    pub(super) fn freeze(&self) -> Result<(), ContainerError> {
        let frozen = ControlGroup::at(&self.dir).freeze(FREEZE_TIMEOUT);
        let frozen = frozen.map_err(io::Error::other);
        frozen.map_err(ContainerError::system("freeze the processes"))
    }

    pub(super) fn thaw(&self) -> Result<(), ContainerError> {
        self.write("cgroup.freeze", "0")
    }

    /// Kills all processes of the group, and removes it with the groups that they have created within.
    pub(super) fn remove(&self) -> Result<(), ContainerError> {
        if !self.dir.exists() {
            return Ok(());
        }
        let group = ControlGroup::at(&self.dir);
        let remove = || {
            // Again each time: a process that was being started can join after a kill.
            group.kill();
            // Also removes the groups within.
            group.sweep(|_| Ok(())).map_err(io::Error::other)?;
            fs::remove_dir(&self.dir)
        };
        wait_for(KILL_TIMEOUT, || remove().ok())
            .map_or_else(remove, Ok)
            .map_err(ContainerError::system("remove a control group"))
    }

    /// Prints what the processes use, as JSON.
    pub(super) fn print_stats(&self) -> Result<(), ContainerError> {
        let cpu = self.read("cpu.stat").unwrap_or_default();
        let memory = self.read("memory.stat").unwrap_or_default();
        let events = self.read("memory.events").unwrap_or_default();
        let value = |text: &str, key: &str| {
            let values = text.lines().filter_map(|line| line.split_once(' '));
            let mut values = values.filter(|(name, _)| *name == key);
            values
                .find_map(|(_, value)| value.parse().ok())
                .unwrap_or(0)
        };
        // The files of a controller that the kernel lacks do not exist, nor those of a group that was not created.
        let number = |name| {
            let text = self.read(name).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let limit = self.read("memory.max").ok();
        let limit = limit.and_then(|text| text.trim().parse().ok());
        let mut stats = ContainerStats::default();
        stats.memory = number("memory.current");
        stats.memory_limit = limit.unwrap_or(u64::MAX);
        stats.memory_inactive_file = value(&memory, "inactive_file");
        stats.memory_anonymous = value(&memory, "anon");
        stats.page_faults = value(&memory, "pgfault");
        stats.major_page_faults = value(&memory, "pgmajfault");
        stats.pids = number("pids.current");
        stats.cpu_micros = value(&cpu, "usage_usec");
        stats.cpu_user_micros = value(&cpu, "user_usec");
        stats.cpu_system_micros = value(&cpu, "system_usec");
        stats.oom_kills = value(&events, "oom_kill");
        let text = serde_json::to_string(&stats);
        let text = text.map_err(ContainerError::system("format the statistics"))?;
        println!("{text}");
        Ok(())
    }

    fn write(&self, name: &str, value: &str) -> Result<(), ContainerError> {
        let path = self.dir.join(name);
        let error = ContainerError::system(format!("write {value} to {}", path.display()));
        // To create a file that does not exist would be another error.
        let file = OpenOptions::new().write(true).open(path);
        let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(error)
    }

    fn read(&self, name: &str) -> Result<String, ContainerError> {
        let path = self.dir.join(name);
        let error = ContainerError::system(format!("read {}", path.display()));
        fs::read_to_string(&path).map_err(error)
    }
}

/// Returns whether a limit that cannot be applied is ignored, because it is meant for the host: its CPUs and memory nodes,
/// which the guest can lack, and its swap, without which a kernel has no file for the limit.
fn is_ignorable(file: &str, error: &ContainerError) -> bool {
    let ContainerError::System { source, .. } = error else {
        return false;
    };
    let errno = source.raw_os_error().map(Errno::from_raw);
    match file {
        "cpuset.cpus" | "cpuset.mems" => matches!(errno, Some(Errno::EINVAL | Errno::ERANGE)),
        "memory.swap.max" => errno == Some(Errno::ENOENT),
        _ => false,
    }
}

/// Sends a signal to a process, also a real-time signal, which nix and rustix do not know.
fn send(pid: u32, signal: i32) -> io::Result<()> {
    match pidfd::open(pid)? {
        Some(pidfd) => pidfd_send_signal(pidfd.as_fd(), signal, 0),
        None => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_swap_is_ignored_without_a_file_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let group = ContainerGroup {
            dir: dir.path().to_owned(),
        };
        let name = "memory.swap.max";
        let error = group.write(name, "1").unwrap_err();
        assert!(is_ignorable(name, &error), "{error:?}");
        assert!(!is_ignorable("memory.max", &error));
    }
}
