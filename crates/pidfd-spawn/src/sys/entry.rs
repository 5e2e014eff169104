//! The system calls that return twice in the same memory.

/// The function that a child in shared memory runs.
pub(super) type Entry<T> = unsafe extern "C" fn(*mut T) -> !;

/// Makes a `clone(2)` or `clone3(2)` with `CLONE_VM | CLONE_VFORK` and no new stack. The child calls
/// `entry` with `argument`; the parent gets the return value of the kernel, after the child has
/// executed another program or exited.
///
/// # Safety
///
/// * The system call must create a process with these flags, or fail.
/// * `argument` must be valid until this function returns, and `entry` must be sound to call in a
///   process that shares its memory with a parent whose other threads run.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn clone_in_shared_memory<T>(
    number: usize,
    args: [usize; 5],
    entry: Entry<T>,
    argument: *mut T,
) -> isize {
    let result: isize;
    // SAFETY: the parent is suspended until the child no longer uses the memory, so at any time only
    // one of them uses this stack. The child starts with the parent's stack pointer and never
    // returns above it: it calls a function that does not return. So it writes only below the stack
    // pointer, where the parent has nothing: without the option `nostack` the compiler keeps the
    // red zone out of use and the stack aligned for a call. The child's registers are its own; of
    // the parent's, the kernel changes only rax, rcx and r11.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            // Not `lateout`: these registers must not hold `argument` or `entry`.
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// Does the same as on x86-64.
///
/// # Safety
///
/// As on x86-64.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn clone_in_shared_memory<T>(
    number: usize,
    args: [usize; 5],
    entry: Entry<T>,
    argument: *mut T,
) -> isize {
    let result: isize;
    // SAFETY: as on x86-64. AArch64 Linux has no red zone, and the kernel changes only x0.
    unsafe {
        core::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            in("x8") number,
            inlateout("x0") args[0] as isize => result,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
        );
    }
    result
}

/// Fails with `ENOSYS`, so that children are forked.
///
/// # Safety
///
/// Safe with any arguments.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) unsafe fn clone_in_shared_memory<T>(
    _number: usize,
    _args: [usize; 5],
    _entry: Entry<T>,
    _argument: *mut T,
) -> isize {
    -(libc::ENOSYS as isize)
}
