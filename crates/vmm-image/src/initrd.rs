use std::path::Path;

use crate::modules::{Module, Modules};
use crate::{BuildError, CpioArchive, agent};

/// What the agent needs: the bus, the port to the host, the root file system below an overlay.
const REQUIRED_MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "ext4",
    "overlay",
];

/// What a guest uses if its kernel has it: reports of a panic, the checksums of ext4, shared
/// directories, network interfaces.
const OPTIONAL_MODULES: [&str; 4] = ["pvpanic_mmio", "crc32c_generic", "virtiofs", "virtio_net"];

/// Returns an initial RAM file system with an agent, and with the modules of a kernel that it loads.
pub(crate) fn build(agent: &Path, modules: &Path) -> Result<Vec<u8>, BuildError> {
    let agent = agent::read(agent)?;
    let modules = Modules::read(modules)?.select(&REQUIRED_MODULES, &OPTIONAL_MODULES)?;
    Ok(archive(&agent, &modules))
}

fn archive(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = CpioArchive::new();
    archive.add_file("init", 0o755, agent);
    archive.add_dir("modules");
    let mut order = String::new();
    for Module { name, contents } in modules {
        archive.add_file(&format!("modules/{name}.ko"), 0o644, contents);
        order += &format!("{name}.ko\n");
    }
    archive.add_file("modules/order", 0o644, order.as_bytes());
    archive.finish()
}
