//! The mounts that containerd requests for a root file system.

use std::ffi::CString;
use std::io;
use std::path::Path;

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{MountFlags, mount, mount_remount};
use vmm_protocol::pod::MountOptions;
use vmm_shim::{DetachedMount, MountPropagation};

/// Mounts one after the other on a directory.
pub(crate) fn mount_all(entries: &[Mount], target: &Path) -> io::Result<()> {
    entries
        .iter()
        .try_for_each(|entry| mount_one(entry, target))
}

fn mount_one(entry: &Mount, target: &Path) -> io::Result<()> {
    let options = MountOptions::parse(entry.options.iter().map(String::as_str));
    if options.is_bind || entry.type_ == "bind" {
        bind(Path::new(&entry.source), target, options.is_recursive)?;
        if !options.flags.is_empty() {
            mount_remount(target, MountFlags::BIND | options.flags, "")?;
        }
        return Ok(());
    }
    let data = CString::new(options.data).map_err(io::Error::other)?;
    mount(
        entry.source.as_str(),
        target,
        entry.type_.as_str(),
        options.flags,
        data.as_c_str(),
    )?;
    Ok(())
}

/// Mounts a directory privately: the end of a mount that is shared would end mounts at the source, too.
fn bind(source: &Path, target: &Path, is_recursive: bool) -> io::Result<()> {
    let mount = match is_recursive {
        true => DetachedMount::copy_all(source)?,
        false => DetachedMount::copy(source)?,
    };
    mount.set_propagation(MountPropagation::Private)?;
    mount.attach(target)
}
