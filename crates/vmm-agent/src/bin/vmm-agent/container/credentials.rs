use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
};
use vmm_protocol::pod::{HeldCapabilities, ProcessSpec};

use super::error::ContainerError;

/// Changes the user, the groups and the capabilities of this process, which has one thread, to those of the spec.
pub(super) fn change(process: &ProcessSpec) -> Result<(), ContainerError> {
    if let Some(bounding) = process.capabilities {
        limit(bounding)?;
    }
    let held = process.held_capabilities;
    // A change of the user removes them otherwise, before they can be limited to those of the spec.
    set_keep_capabilities(held.is_some()).map_err(ContainerError::system("keep capabilities"))?;
    set_user(process).map_err(ContainerError::system("change the user"))?;
    held.map_or(Ok(()), hold)
}

/// Removes all other capabilities from those that a program can get.
fn limit(bounding: u64) -> Result<(), ContainerError> {
    let kept = CapabilitySet::from_bits_retain(bounding);
    for (_, capability) in CapabilitySet::all().difference(kept).iter_names() {
        remove_capability_from_bounding_set(capability)
            .map_err(ContainerError::system("drop a capability"))?;
    }
    Ok(())
}

fn set_user(process: &ProcessSpec) -> nix::Result<()> {
    let groups = process.groups.iter().copied().map(Gid::from_raw);
    setgroups(&groups.collect::<Vec<_>>())?;
    setgid(Gid::from_raw(process.gid))?;
    setuid(Uid::from_raw(process.uid))
}

fn hold(held: HeldCapabilities) -> Result<(), ContainerError> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(held.effective),
        permitted: CapabilitySet::from_bits_retain(held.permitted),
        inheritable: CapabilitySet::from_bits_retain(held.inheritable),
    };
    set_capabilities(None, sets).map_err(ContainerError::system("set the capabilities"))?;
    for (name, capability) in CapabilitySet::from_bits_retain(held.ambient).iter_names() {
        configure_capability_in_ambient_set(capability, true).map_err(ContainerError::system(
            format!("add CAP_{name} to the ambient capabilities"),
        ))?;
    }
    Ok(())
}
