use pidfd_spawn::{Command, Resource};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use vmm_protocol::pod::ProcessSpec;

use super::error::ContainerError;

/// Becomes the process, in the root of its container.
pub(super) fn exec(process: &ProcessSpec) -> Result<(), ContainerError> {
    let (program, args) = process
        .args
        .split_first()
        .ok_or(ContainerError::NoCommand)?;
    if let Some(kept) = process.capabilities {
        drop_capabilities(kept)?;
    }
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&process.env)
        .current_dir(&process.cwd)
        .uid(process.uid)
        .gid(process.gid)
        .groups(&process.groups)
        .no_new_privs(process.no_new_privs);
    for limit in &process.limits {
        if let Some(resource) = resource(&limit.name) {
            command.rlimit(resource, limit.soft, limit.hard);
        }
    }
    Err(ContainerError::Exec(command.exec()))
}

/// Removes all other capabilities from those that a program can get.
fn drop_capabilities(kept: u64) -> Result<(), ContainerError> {
    let kept = CapabilitySet::from_bits_retain(kept);
    for (_, capability) in CapabilitySet::all().difference(kept).iter_names() {
        remove_capability_from_bounding_set(capability)
            .map_err(ContainerError::system("drop a capability"))?;
    }
    Ok(())
}

/// Returns the resource with a name of `setrlimit(2)`.
fn resource(name: &str) -> Option<Resource> {
    Some(match name.strip_prefix("RLIMIT_")? {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        _ => return None,
    })
}
