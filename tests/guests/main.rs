//! Boxes whose payload is a guest, with QEMU and a kernel that really boots.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../crates/vmm-agent/tests/common/image.rs"]
mod image;
#[path = "../../crates/vmm-network/tests/common/namespace.rs"]
mod namespace;

mod accelerators;
mod agent;
mod boot_times;
mod confinement;
mod ends;
mod example;
mod failed_starts;
mod files;
mod guest;
mod killed_runtimes;
mod kills;
mod many;
mod network;
mod pause;
mod persistent_disks;
mod recovery;
mod shares;
mod workload;
