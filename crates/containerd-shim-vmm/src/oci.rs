//! From the OCI runtime spec of a container to what the agent of the guest is asked.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxCapabilities, LinuxNamespaceType, Process, Spec};
use rustix::thread::CapabilitySet;
use vmm_protocol::pod::{ContainerMount, ContainerSpec, ProcessLimit, ProcessSpec, Resources};

use crate::error::ShimError;

/// The annotations of the CRI plugin.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Returns the ID of the sandbox that a container belongs to, unless it is a sandbox itself.
pub(crate) fn sandbox(spec: &Spec) -> Option<&String> {
    let annotations = spec.annotations().as_ref()?;
    let kind = annotations.get(CONTAINER_TYPE);
    let is_container = kind.is_some_and(|kind| kind == "container");
    annotations.get(SANDBOX_ID).filter(|_| is_container)
}

/// Returns whether the container is a sandbox of a pod of several containers.
pub(crate) fn is_sandbox(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    let kind = annotations.and_then(|annotations| annotations.get(CONTAINER_TYPE));
    kind.is_some_and(|kind| kind == "sandbox")
}

/// Returns the container, and the files and directories of the host that are mounted into it, by the number of
/// the mount.
pub(crate) fn container(spec: &Spec) -> (ContainerSpec, Vec<(usize, PathBuf)>) {
    let mut container = ContainerSpec::default();
    container.sandbox = sandbox(spec).cloned();
    container.hostname.clone_from(spec.hostname());
    container.read_only = spec.root().as_ref().and_then(|root| root.readonly()) == Some(true);
    container.resources = resources(spec);
    let mut sources = Vec::new();
    for (number, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = mount.options().clone().unwrap_or_default();
        let kind = mount.typ().clone();
        let is_bind = options
            .iter()
            .any(|option| option == "bind" || option == "rbind");
        let is_file = is_bind || kind.as_deref().is_none_or(|kind| kind == "bind");
        if let Some(source) = mount.source().clone().filter(|_| is_file) {
            sources.push((number, source));
        }
        container.mounts.push(ContainerMount {
            destination: mount.destination().clone(),
            kind: kind.filter(|_| !is_file),
            options,
        });
    }
    (container, sources)
}

/// Returns the network namespace of a container; `None` if it shares that of the host.
pub(crate) fn network_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().iter().flatten();
    let mut networks =
        namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    networks.next()?.path().clone()
}

/// Returns the `oom_score_adj` of a container, if it has one.
pub(crate) fn oom_score(spec: &Spec) -> Option<i32> {
    spec.process().as_ref()?.oom_score_adj()
}

fn resources(spec: &Spec) -> Resources {
    let linux = spec.linux().as_ref();
    let Some(limits) = linux.and_then(|linux| linux.resources().as_ref()) else {
        return Resources::default();
    };
    // A negative number is unlimited.
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let memory = limits.memory().as_ref().and_then(|memory| memory.limit());
    let pids = limits.pids().as_ref().map(|pids| pids.limit());
    let cpu = limits.cpu().as_ref();
    let quota = cpu.and_then(|cpu| cpu.quota()).and_then(positive);
    let period = cpu
        .and_then(|cpu| cpu.period())
        .unwrap_or(DEFAULT_PERIOD_MICROS);
    Resources {
        memory: memory.and_then(positive),
        pids: pids.and_then(positive),
        cpu: quota.map(|quota| (quota, period)),
    }
}

/// The period of a CPU limit without one, as in the kernel.
const DEFAULT_PERIOD_MICROS: u64 = 100_000;

/// Returns the process of a container.
pub(crate) fn process(process: &Process) -> Result<ProcessSpec, ShimError> {
    let mut spec = ProcessSpec::default();
    spec.args = process.args().clone().unwrap_or_default();
    for variable in process.env().iter().flatten() {
        let (name, value) = variable
            .split_once('=')
            .ok_or_else(|| ShimError::Spec(format!("the variable {variable:?} has no value")))?;
        spec.env.insert(name.to_owned(), value.to_owned());
    }
    spec.cwd = process.cwd().clone();
    let user = process.user();
    spec.uid = user.uid();
    spec.gid = user.gid();
    spec.groups = user.additional_gids().clone().unwrap_or_default();
    spec.no_new_privs = process.no_new_privileges() == Some(true);
    spec.capabilities = process.capabilities().as_ref().map(capabilities);
    let limits = process.rlimits().iter().flatten();
    spec.limits = limits
        .map(|limit| ProcessLimit {
            name: limit.typ().to_string(),
            soft: limit.soft(),
            hard: limit.hard(),
        })
        .collect();
    Ok(spec)
}

fn capabilities(capabilities: &LinuxCapabilities) -> u64 {
    let bounding = capabilities.bounding().iter().flatten();
    let known = bounding.filter_map(|capability| CapabilitySet::from_name(&capability.to_string()));
    known.fold(0, |mask, capability| mask | capability.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_limits_and_mounts_of_its_spec() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "hostname": "box",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]},
            ],
            "linux": {"resources": {
                "memory": {"limit": 1024},
                "pids": {"limit": -1},
                "cpu": {"quota": 5000}
            }},
        }))
        .unwrap();
        let (container, sources) = container(&spec);
        assert_eq!(container.hostname.as_deref(), Some("box"));
        assert!(container.read_only);
        assert_eq!(container.mounts[0].kind.as_deref(), Some("proc"));
        assert_eq!(container.mounts[1].kind, None);
        assert_eq!(sources, [(1, PathBuf::from("/srv"))]);
        let limits = Resources {
            memory: Some(1024),
            pids: None,
            cpu: Some((5000, DEFAULT_PERIOD_MICROS)),
        };
        assert_eq!(container.resources, limits);
    }

    #[test]
    fn a_process_has_the_user_and_the_capabilities_of_its_spec() {
        let oci: Process = serde_json::from_value(serde_json::json!({
            "user": {"uid": 33, "gid": 34, "additionalGids": [4]},
            "args": ["id"],
            "env": ["A=b=c"],
            "cwd": "/tmp",
            "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
        }))
        .unwrap();
        let process = process(&oci).unwrap();
        assert_eq!(
            (process.uid, process.gid, &process.groups[..]),
            (33, 34, &[4][..])
        );
        assert_eq!(process.env["A"], "b=c");
        assert_eq!(process.capabilities, Some(1 | 1 << 10));
        assert_eq!(process.limits[0].name, "RLIMIT_NOFILE");
    }
}
