//! The program `containerd-shim-vmm-v1`. containerd starts it for each pod.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Each guest runs in a shim process of this program.
    vmm_shim::Shim::new().engine(vmm_shim::Qemu).run_if_shim();
    containerd_shim_vmm::run()
}
