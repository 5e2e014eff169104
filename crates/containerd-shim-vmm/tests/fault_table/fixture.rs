use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use crate::common::events::ExitLog;
use crate::common::{Containerd, IMAGE, eventually, stderr};

/// How long the consumer of events is stopped.
pub(crate) const STALL: Duration = Duration::from_secs(3);

/// The runtimes that are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    Vmm,
    Runc,
}

impl Runtime {
    pub(crate) const ALL: [Self; 2] = [Self::Vmm, Self::Runc];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Runc => "runc",
        }
    }

    /// How long a report, or the end of a container, may take. A server whose container was never created ends
    /// after 30 s. runc, which is not judged, has enough time.
    pub(crate) fn timeout(self) -> Duration {
        match self {
            Self::Vmm => Duration::from_secs(60),
            Self::Runc => Duration::from_secs(5),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Vmm => "io.containerd.vmm.v1",
            Self::Runc => "io.containerd.runc.v2",
        }
    }
}

/// A containerd, the exits that it reports, and a directory that containers see as `/gate`.
pub(crate) struct Fixture {
    // Ends first: it runs a client of containerd.
    pub(crate) log: ExitLog,
    pub(crate) containerd: Containerd,
    gate: PathBuf,
    containers: usize,
}

impl Fixture {
    pub(crate) fn new(containerd: Containerd) -> Self {
        let gate = containerd.path("gate");
        fs::create_dir(&gate).unwrap();
        Self {
            log: ExitLog::start(&containerd),
            containerd,
            gate,
            containers: 0,
        }
    }

    /// Returns the ID of a new container.
    pub(crate) fn new_id(&mut self) -> String {
        self.containers += 1;
        format!("fault-{}-{}", std::process::id(), self.containers)
    }

    /// Returns a command that runs a container.
    pub(crate) fn run_command(
        &self,
        runtime: Runtime,
        id: &str,
        options: &[&str],
        script: &str,
    ) -> Command {
        let gate = format!(
            "type=bind,src={},dst=/gate,options=rbind:rw",
            self.gate.display()
        );
        let fixed = [
            "run",
            "--runtime",
            runtime.name(),
            "--snapshotter",
            "native",
            "--mount",
            &gate,
        ];
        let words = [IMAGE, id, "sh", "-c", script];
        let args = fixed.iter().chain(options).chain(&words);
        self.containerd.ctr_command(args.copied())
    }

    pub(crate) fn ctr(&self, args: &[&str]) -> Output {
        self.containerd.ctr(args.iter().copied())
    }

    /// Returns the script of a container that exits with 42 when its gate is opened, after this command.
    pub(crate) fn gated_script(id: &str, command: &str) -> String {
        format!("while ! [ -e /gate/{id} ]; do sleep 0.1; done; {command} exit 42")
    }

    pub(crate) fn open_gate(&self, id: &str) {
        fs::write(self.gate.join(id), "").unwrap();
    }

    /// Returns the pid of the shim of a container, while it serves.
    pub(crate) fn shim_pid(&self, id: &str) -> Option<u32> {
        let mark = format!("\0-id\0{id}\0");
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            let is_action = ["start\0", "delete\0"]
                .iter()
                .any(|action| arguments.ends_with(action));
            arguments.contains(&mark) && arguments.contains("shim") && !is_action
        })
    }

    /// Waits until the shim of a container has the exit, while containerd is stopped. That of runc has no record: it gets
    /// enough time.
    pub(crate) fn wait_recorded(&self, runtime: Runtime, id: &str) {
        let bundles = "state/io.containerd.runtime.v2.task/default";
        let record = self.containerd.path(bundles).join(id).join("vmm-exit.json");
        match runtime {
            Runtime::Vmm => eventually("the exit is recorded", || record.exists()),
            Runtime::Runc => sleep(STALL),
        }
    }

    /// Returns whether no pod of this runtime has a directory.
    pub(crate) fn has_no_pods(&self) -> bool {
        fs::read_dir(self.containerd.pods()).map_or(0, Iterator::count) == 0
    }

    /// Deletes the task, and returns the exit code that is reported then.
    pub(crate) fn delete_task(&self, id: &str) -> Option<u64> {
        Self::exit_code(&self.ctr(&["task", "delete", id]))
    }

    /// Returns the exit code that `ctr task delete` has reported.
    pub(crate) fn exit_code(output: &Output) -> Option<u64> {
        let error = stderr(output);
        match error.rsplit_once("exit code ") {
            Some((_, code)) => code.trim().trim_matches('"').parse().ok(),
            None => output.status.success().then_some(0),
        }
    }

    /// Removes what containerd knows of a container.
    pub(crate) fn remove(&self, id: &str) {
        eventually("the container is removed", || {
            self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
            self.ctr(&["task", "delete", "--force", id]);
            self.ctr(&["container", "delete", id]);
            let containers = self.ctr(&["container", "ls", "--quiet"]);
            containers.status.success()
                && !String::from_utf8_lossy(&containers.stdout)
                    .lines()
                    .any(|line| line == id)
        });
    }
}
