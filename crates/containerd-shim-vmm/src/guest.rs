use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::sync::OnceCell;
use vmm_protocol::HostPolicy;
use vmm_protocol::frames::ExecSpec;
use vmm_protocol::pod::{ContainerStats, PodDir};
use vmm_runtime::{
    BoxSpec, BoxUsage, ExecOutput, Execution, Image, Removal, RuntimeError, RuntimeOptions,
    TerminalSize, VmmRuntime,
};
use vmm_shim::{Network, Qemu, QemuOptions, Share, Shim};

use crate::container::Container;
use crate::error::ShimError;
use crate::pod_share::PodShare;
use crate::state_dir::StateDir;
use crate::{log, oom_score};

/// The program of the guest's agent, which runs the processes of containers.
const AGENT: &str = "/proc/self/exe";

/// How long a guest may take to boot, also without KVM on a loaded host.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the shutdown of the VMM runtime may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The size of a terminal before the client sets it.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// The guest of a pod: a box of a VMM runtime.
#[derive(Debug)]
pub(crate) struct Guest {
    runtime: VmmRuntime,
    image: Image,
    network: Option<Network>,
    /// The score of the processes of the guest; that of the server by default.
    oom_score: Option<i32>,
    share: PodShare,
    booted: OnceCell<Booted>,
}

#[derive(Debug)]
struct Booted {
    box_id: String,
    pid: u32,
}

impl Guest {
    /// Opens the VMM runtime. The guest boots when it is first needed, with the interfaces of the network
    /// namespace, or without any. Its processes have the `oom_score_adj` of the sandbox.
    pub(crate) async fn open(
        image: Image,
        namespace: Option<PathBuf>,
        oom_score: Option<i32>,
        state: &StateDir,
    ) -> Result<Self, ShimError> {
        let runtime = open_runtime(state).await.map_err(ShimError::Guest)?;
        Ok(Self {
            runtime,
            image,
            network: namespace.map(Network::new),
            oom_score,
            share: PodShare::of(state),
            booted: OnceCell::new(),
        })
    }

    /// Returns the pid of the virtual machine, after it has booted.
    pub(crate) async fn pid(&self) -> Result<u32, ShimError> {
        Ok(self.booted().await?.pid)
    }

    async fn booted(&self) -> Result<&Booted, ShimError> {
        self.booted.get_or_try_init(|| self.boot()).await
    }

    /// Boots the guest. If that fails, nothing of it is left.
    async fn boot(&self) -> Result<Booted, ShimError> {
        let payload = self.payload().map_err(ShimError::Guest)?;
        let created = self.runtime.create(BoxSpec::of(payload)).await;
        let box_id = created.map_err(ShimError::Guest)?.id.to_string();
        let booted = self.boot_box(&box_id).await;
        if booted.is_err() {
            // The error of the boot says more than that of the removal.
            let _ = self.runtime.remove(&box_id, Removal::Force).await;
        }
        booted
    }

    async fn boot_box(&self, box_id: &str) -> Result<Booted, ShimError> {
        let started = self.runtime.start(box_id).await.map_err(ShimError::Guest)?;
        if let Some(times) = started.boot_times {
            let (vmm, kernel, agent) = (times.vmm_ms, times.kernel_ms, times.agent_ms);
            let all = vmm + kernel + agent;
            log(format_args!(
                "the guest has booted in {all} ms: QEMU and firmware {vmm}, kernel {kernel}, agent {agent}"
            ));
        }
        if let (Some(score), Some(shim)) = (self.oom_score, started.pid) {
            oom_score::set_tree(shim, score)?;
        }
        Ok(Booted {
            box_id: box_id.to_owned(),
            pid: started.payload_pid.or(started.pid).unwrap_or_default(),
        })
    }

    /// Returns the payload: the guest of the configuration, with the directory and the network of the pod.
    fn payload(&self) -> Result<vmm_protocol::PayloadSpec, RuntimeError> {
        let mut payload = self.image.payload(None, None);
        payload.cpus = self.image.cpus;
        payload.memory_mib = self.image.memory_mib;
        let mut options =
            QemuOptions::of(&payload).map_err(|error| RuntimeError::InvalidPayload {
                engine: payload.engine.clone(),
                source: Box::new(error),
            })?;
        let mut share = Share::new(PodDir::TAG, self.share.path());
        share.target = Some(PodDir::IN_GUEST.into());
        options.shares.push(share);
        options.network.clone_from(&self.network);
        payload.options = options.to_payload().options;
        Ok(payload)
    }

    /// Starts a process of a container: the first one if `exec_id` is empty.
    pub(crate) async fn start(
        &self,
        container: &Container,
        exec_id: &str,
        terminal: bool,
        stdin: bool,
    ) -> Result<Execution, ShimError> {
        let (action, argument) = match exec_id {
            "" => ("init", json!(container.pid_namespace).to_string()),
            exec_id => ("exec", exec_id.to_owned()),
        };
        let mut spec = ExecSpec::new("", [AGENT, "container", action, &container.id, &argument]);
        spec.terminal = terminal.then_some(DEFAULT_SIZE);
        spec.stdin = stdin;
        self.exec(spec).await
    }

    /// Connects to a TCP port of the guest's loopback interface: stdin and stdout of the execution are the connection.
    pub(crate) async fn connect(&self, port: u16) -> Result<Execution, ShimError> {
        let mut spec = ExecSpec::new("", [AGENT, "connect", &port.to_string()]);
        spec.stdin = true;
        self.exec(spec).await
    }

    /// Runs a command of the agent for a container, and returns its output.
    pub(crate) async fn command(
        &self,
        action: &'static str,
        container: &str,
        argument: Option<&str>,
    ) -> Result<Vec<u8>, ShimError> {
        let output = self.output(action, container, argument).await?;
        check(action, &output)?;
        Ok(output.stdout)
    }

    /// Returns what the processes of a container use.
    pub(crate) async fn stats(&self, container: &str) -> Result<ContainerStats, ShimError> {
        parse_stats("stats", &self.command("stats", container, None).await?)
    }

    /// Ends all processes of a container. Returns what they have used, and whether they have ended.
    pub(crate) async fn remove(
        &self,
        container: &str,
    ) -> Result<(ContainerStats, Result<(), ShimError>), ShimError> {
        parse_removal(&self.output("remove", container, None).await?)
    }

    /// Returns what the guest uses on the host: its QEMU, the helper processes and their shim.
    pub(crate) async fn usage(&self) -> Result<BoxUsage, ShimError> {
        let booted = self.booted().await?;
        let usage = self.runtime.usage(&booted.box_id).await;
        usage.map_err(ShimError::Guest)
    }

    /// Runs a command of the agent for a container to its end.
    async fn output(
        &self,
        action: &'static str,
        container: &str,
        argument: Option<&str>,
    ) -> Result<ExecOutput, ShimError> {
        let command = [AGENT, "container", action, container];
        let command = command.into_iter().chain(argument);
        let execution = self.exec(ExecSpec::new("", command)).await?;
        let output = execution.output().await;
        output.map_err(|error| ShimError::Agent {
            action,
            message: error.to_string(),
        })
    }

    async fn exec(&self, spec: ExecSpec) -> Result<Execution, ShimError> {
        let booted = self.booted().await?;
        let started = self.runtime.exec(&booted.box_id, spec).await;
        started.map_err(ShimError::Guest)
    }

    /// Kills the guest with everything that belongs to it.
    pub(crate) async fn kill(&self) {
        remove_boxes(&self.runtime).await;
        self.runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    }
}

/// Fails if a command of the agent has failed.
fn check(action: &'static str, output: &ExecOutput) -> Result<(), ShimError> {
    if output.ending.shell_code() == 0 {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ShimError::Agent { action, message })
}

/// Parses the output of a removal, which begins with what the processes have used, also if it fails then.
fn parse_removal(
    output: &ExecOutput,
) -> Result<(ContainerStats, Result<(), ShimError>), ShimError> {
    let removed = check("remove", output);
    match (parse_stats("remove", &output.stdout), removed) {
        (Ok(stats), removed) => Ok((stats, removed)),
        (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
    }
}

fn parse_stats(action: &'static str, output: &[u8]) -> Result<ContainerStats, ShimError> {
    serde_json::from_slice(output).map_err(|error| ShimError::Agent {
        action,
        message: error.to_string(),
    })
}

/// Ends what a server that was killed has left of its guest.
pub(crate) async fn clean_up(state: &StateDir) -> Result<(), RuntimeError> {
    if !state.home().exists() {
        return Ok(());
    }
    let runtime = open_runtime(state).await?;
    remove_boxes(&runtime).await;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    Ok(())
}

async fn open_runtime(state: &StateDir) -> Result<VmmRuntime, RuntimeError> {
    let shim = || Shim::new().engine(Qemu);
    let (validator, cleaner) = (shim(), shim());
    // containerd hands the namespaces over.
    let policy = HostPolicy::default().allow_network(true);
    let options = RuntimeOptions::new(state.home())
        .cache_dir(state.cache())
        .policy(policy.clone())
        .start_timeout(BOOT_TIMEOUT)
        .payload_check(move |payload| validator.validate(payload, &policy))
        .payload_cleanup(move |payload, dir| cleaner.cleanup(payload, dir));
    VmmRuntime::open(options).await
}

async fn remove_boxes(runtime: &VmmRuntime) {
    for info in runtime.list().await {
        // What is left is reported by the shutdown, and found by `delete`.
        let _ = runtime.remove(&info.id, Removal::Force).await;
    }
}

#[cfg(test)]
mod tests {
    use vmm_protocol::Ending;

    use super::*;

    #[test]
    fn a_removal_that_fails_reports_what_the_container_has_used() {
        let output = |stdout: &[u8], code| ExecOutput {
            ending: Ending::Exited { code },
            stdout: stdout.to_vec(),
            stderr: b"vmm-agent: it is busy\n".to_vec(),
        };
        let mut stats = ContainerStats::default();
        stats.oom_kills = 2;
        let stats = serde_json::to_vec(&stats).unwrap();
        let (used, removed) = parse_removal(&output(&stats, 125)).unwrap();
        assert_eq!(used.oom_kills, 2);
        let error = removed.unwrap_err().to_string();
        assert!(error.ends_with("it is busy"), "{error}");
        let (used, removed) = parse_removal(&output(&stats, 0)).unwrap();
        assert!(used.oom_kills == 2 && removed.is_ok());
        let error = parse_removal(&output(b"", 125)).unwrap_err().to_string();
        assert!(error.ends_with("it is busy"), "{error}");
    }
}
