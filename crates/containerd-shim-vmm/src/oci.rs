//! From the OCI runtime spec of a container to what the agent of the guest is asked.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceType, Process, Spec,
};
use rustix::mount::MountFlags;
use rustix::thread::CapabilitySet;
use vmm_protocol::pod::{
    ContainerDevice, ContainerMount, ContainerSpec, DeviceKind, HeldCapabilities, MountOptions,
    PidNamespace, ProcessLimit, ProcessSpec,
};

use crate::error::ShimError;
use crate::resources;

/// The annotations of the CRI plugin.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// The permissions of a device without any in the spec, as with runc.
const DEFAULT_DEVICE_MODE: u32 = 0o666;

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
pub(crate) fn container(spec: &Spec) -> Result<(ContainerSpec, Vec<(usize, PathBuf)>), ShimError> {
    let mut container = ContainerSpec::default();
    container.sandbox = sandbox(spec).cloned();
    container.hostname.clone_from(spec.hostname());
    container.read_only = spec.root().as_ref().and_then(|root| root.readonly()) == Some(true);
    container.cgroup_namespace = namespace(spec, LinuxNamespaceType::Cgroup)
        .is_some_and(|namespace| namespace.path().is_none());
    if let Some(linux) = spec.linux() {
        add_linux(&mut container, linux)?;
    }
    let mut sources = Vec::new();
    for (number, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = mount.options().clone().unwrap_or_default();
        let kind = mount.typ().clone();
        let is_bind = options
            .iter()
            .any(|option| option == "bind" || option == "rbind");
        let is_file = is_bind || kind.as_deref().is_none_or(|kind| kind == "bind");
        if let Some(source) = mount.source().clone().filter(|_| is_file) {
            check_options(mount.destination(), &options)?;
            sources.push((number, source));
        }
        container.mounts.push(ContainerMount {
            destination: mount.destination().clone(),
            kind: kind.filter(|_| !is_file),
            options,
        });
    }
    Ok((container, sources))
}

/// Fails if a mount of a file or directory has an option that is not applied to it, such as one of a file system: the
/// kernel would ignore it.
fn check_options(destination: &Path, options: &[String]) -> Result<(), ShimError> {
    let is_refused = |option: &&str| {
        let parsed = MountOptions::parse([*option]);
        let of_file_system = MountFlags::SYNCHRONOUS | MountFlags::DIRSYNC;
        !parsed.data.is_empty() || parsed.flags.intersects(of_file_system)
    };
    let options = options.iter().map(String::as_str);
    let refused: Vec<_> = options.filter(is_refused).collect();
    if refused.is_empty() {
        return Ok(());
    }
    let (destination, refused) = (destination.display(), refused.join(","));
    let message = format!("the mount at {destination} cannot have the options {refused:?}");
    Err(ShimError::Spec(message))
}

fn add_linux(container: &mut ContainerSpec, linux: &Linux) -> Result<(), ShimError> {
    let paths = |paths: &Option<Vec<String>>| paths.iter().flatten().map(PathBuf::from).collect();
    container.masked_paths = paths(linux.masked_paths());
    container.read_only_paths = paths(linux.readonly_paths());
    let devices = linux.devices().iter().flatten().map(device);
    container.devices = devices.collect::<Result<_, _>>()?;
    let sysctls = linux.sysctl().iter().flatten();
    container.sysctls = sysctls
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(limits) = linux.resources() {
        container.resources = resources::of(limits)?;
    }
    Ok(())
}

fn device(device: &LinuxDevice) -> Result<ContainerDevice, ShimError> {
    let path = device.path().clone();
    let invalid = |what| ShimError::Spec(format!("{what} of the device {}", path.display()));
    let kind = match device.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(invalid("the type")),
    };
    let number = |number: i64| u32::try_from(number).map_err(|_| invalid("a number"));
    Ok(ContainerDevice {
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        // A spec can have the type in it, too.
        mode: device.file_mode().unwrap_or(DEFAULT_DEVICE_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        path,
    })
}

/// Returns the network namespace of a container; `None` if it shares that of the host.
pub(crate) fn network_namespace(spec: &Spec) -> Option<PathBuf> {
    namespace(spec, LinuxNamespaceType::Network)?.path().clone()
}

/// Returns the PID namespace of a container. A path is in the `/proc` of the host, where all processes of a pod are one:
/// that of its guest. It therefore stands for the sandbox.
pub(crate) fn pid_namespace(spec: &Spec) -> PidNamespace {
    let found = namespace(spec, LinuxNamespaceType::Pid);
    match (found.map(LinuxNamespace::path), sandbox(spec)) {
        (Some(None), _) => PidNamespace::New,
        (Some(Some(_)), Some(sandbox)) => PidNamespace::Of(sandbox.clone()),
        (Some(Some(_)), None) | (None, _) => PidNamespace::Guest,
    }
}

fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    let mut namespaces = spec.linux().as_ref()?.namespaces().iter().flatten();
    namespaces.find(|namespace| namespace.typ() == kind)
}

/// Returns the `oom_score_adj` of a container, if it has one.
pub(crate) fn oom_score(spec: &Spec) -> Option<i32> {
    spec.process().as_ref()?.oom_score_adj()
}

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
    // Without the sets, it has none, as the first process of a container with runc.
    let sets = process.capabilities().as_ref();
    let set = |set: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        sets.map_or(0, |sets| mask(set(sets)))
    };
    spec.capabilities = Some(set(LinuxCapabilities::bounding));
    spec.held_capabilities = Some(HeldCapabilities {
        effective: set(LinuxCapabilities::effective),
        permitted: set(LinuxCapabilities::permitted),
        inheritable: set(LinuxCapabilities::inheritable),
        ambient: set(LinuxCapabilities::ambient),
    });
    spec.umask = user.umask();
    spec.oom_score_adj = process.oom_score_adj();
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

/// Returns a process that is added to a container. Without capabilities of its own, it has those of the container.
pub(crate) fn added_process(
    mut added: Process,
    container: &Spec,
) -> Result<ProcessSpec, ShimError> {
    if added.capabilities().is_none() {
        let first = container.process().as_ref();
        added.set_capabilities(first.and_then(|first| first.capabilities().clone()));
    }
    process(&added)
}

/// Returns the capabilities as a bit mask. None of the others are known to this program.
fn mask(capabilities: &Option<Capabilities>) -> u64 {
    let capabilities = capabilities.iter().flatten();
    let known =
        capabilities.filter_map(|capability| CapabilitySet::from_name(&capability.to_string()));
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
            "linux": {
                "resources": {"memory": {"limit": 1024}},
                "maskedPaths": ["/proc/kcore"],
                "readonlyPaths": ["/proc/sys"],
                "sysctl": {"kernel.shm_rmid_forced": "1"},
                "devices": [
                    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o20_600},
                ],
            },
        }))
        .unwrap();
        let (container, sources) = container(&spec).unwrap();
        assert_eq!(container.hostname.as_deref(), Some("box"));
        assert!(container.read_only);
        assert_eq!(container.mounts[0].kind.as_deref(), Some("proc"));
        assert_eq!(container.mounts[1].kind, None);
        assert_eq!(sources, [(1, PathBuf::from("/srv"))]);
        assert_eq!(container.resources.memory, Some(1024));
        assert_eq!(container.masked_paths, [PathBuf::from("/proc/kcore")]);
        assert_eq!(container.read_only_paths, [PathBuf::from("/proc/sys")]);
        assert_eq!(container.sysctls["kernel.shm_rmid_forced"], "1");
        let fuse = ContainerDevice {
            path: "/dev/fuse".into(),
            kind: DeviceKind::Character,
            major: 10,
            minor: 229,
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        assert_eq!(container.devices, [fuse]);
    }

    #[test]
    fn a_mount_of_a_directory_with_an_option_that_is_not_applied_is_refused() {
        let of = |options: &[&str]| {
            let spec: Spec = serde_json::from_value(serde_json::json!({
                "ociVersion": "1.0.2",
                "mounts": [
                    {"destination": "/data", "type": "bind", "source": "/srv", "options": options},
                    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
                ],
            }))
            .unwrap();
            container(&spec)
        };
        assert!(of(&["rbind", "rprivate", "rro", "nosymfollow"]).is_ok());
        let error = of(&[
            "rbind", "ro", "idmap", "sync", "async", "dirsync", "size=1m",
        ])
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the OCI spec of the container is not valid: the mount at /data cannot have the options \
             \"idmap,sync,dirsync,size=1m\""
        );
    }

    #[test]
    fn a_container_has_the_pid_namespace_of_its_spec() {
        let of = |namespaces: serde_json::Value, kind: &str| {
            let spec: Spec = serde_json::from_value(serde_json::json!({
                "ociVersion": "1.0.2",
                "annotations": {CONTAINER_TYPE: kind, SANDBOX_ID: "pod"},
                "linux": {"namespaces": namespaces},
            }))
            .unwrap();
            pid_namespace(&spec)
        };
        let new = serde_json::json!([{"type": "mount"}, {"type": "pid"}]);
        assert_eq!(of(new, "container"), PidNamespace::New);
        let shared = serde_json::json!([{"type": "pid", "path": "/proc/42/ns/pid"}]);
        let of_pod = PidNamespace::Of("pod".to_owned());
        assert_eq!(of(shared.clone(), "container"), of_pod);
        assert_eq!(of(shared, "sandbox"), PidNamespace::Guest);
        let none = serde_json::json!([{"type": "mount"}]);
        assert_eq!(of(none, "container"), PidNamespace::Guest);
    }

    #[test]
    fn a_process_has_the_user_and_the_capabilities_of_its_spec() {
        let oci: Process = serde_json::from_value(serde_json::json!({
            "user": {"uid": 33, "gid": 34, "additionalGids": [4], "umask": 0o27},
            "args": ["id"],
            "env": ["A=b=c"],
            "cwd": "/tmp",
            "noNewPrivileges": true,
            "oomScoreAdj": -7,
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
                "permitted": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
                "inheritable": ["CAP_CHOWN"],
                "ambient": ["CAP_CHOWN"],
            },
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
        let held = HeldCapabilities {
            effective: 0,
            permitted: 1 | 1 << 10,
            inheritable: 1,
            ambient: 1,
        };
        assert_eq!(process.held_capabilities, Some(held));
        assert_eq!(
            (process.umask, process.oom_score_adj),
            (Some(0o27), Some(-7))
        );
        assert_eq!(process.limits[0].name, "RLIMIT_NOFILE");
    }

    #[test]
    fn a_process_without_capabilities_in_its_spec_has_none() {
        let oci: Process = serde_json::from_value(serde_json::json!({
            "user": {"uid": 0, "gid": 0}, "args": ["id"], "cwd": "/",
        }))
        .unwrap();
        let process = process(&oci).unwrap();
        assert_eq!(process.capabilities, Some(0));
        assert_eq!(process.held_capabilities, Some(HeldCapabilities::default()));
    }
}
