//! Executes one instruction in a virtual machine of KVM.

use std::io;
use std::ptr::{self, NonNull};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use nix::libc;

const PAGE: usize = 4096;

/// The instruction `hlt`.
const HLT: u8 = 0xf4;

/// Creates a virtual machine with one CPU, and lets it halt. Can hang.
///
/// # Errors
///
/// The error of the first system call that fails, or the unexpected exit of the CPU.
pub(crate) fn halt() -> io::Result<()> {
    let vm = Kvm::new()?.create_vm()?;
    let page = map_page()?;
    // SAFETY: the page is mapped, and nothing else refers to it.
    unsafe { page.write(HLT) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE as u64,
        userspace_addr: page.as_ptr() as u64,
    };
    // SAFETY: the memory stays mapped until the process ends.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut segments = vcpu.get_sregs()?;
    (segments.cs.base, segments.cs.selector) = (0, 0);
    vcpu.set_sregs(&segments)?;
    let mut registers = vcpu.get_regs()?;
    // The bit of the flags is always set.
    (registers.rip, registers.rflags) = (0, 2);
    vcpu.set_regs(&registers)?;
    match vcpu.run()? {
        VcpuExit::Hlt => Ok(()),
        exit => Err(io::Error::other(format!(
            "the CPU has not halted: {exit:?}"
        ))),
    }
}

/// Maps a page of memory for the rest of the process.
fn map_page() -> io::Result<NonNull<u8>> {
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: the kernel chooses the place of a new mapping.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}
