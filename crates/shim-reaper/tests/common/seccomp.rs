//! System calls that fail as on older kernels.

use nix::errno::Errno;
use nix::libc;

/// A condition on the low half of an argument.
#[derive(Clone, Copy)]
pub enum Argument {
    HasBits(u32),
    Equals(u32),
}

/// Makes a system call fail if an argument meets the condition, in this thread and in all that it
/// starts.
pub fn refuse(call: i64, index: u32, argument: Argument, errno: Errno) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let jump = |test, k, jf| statement(libc::BPF_JMP | test | libc::BPF_K, 0, jf, k);
    let give = |value| statement(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    let (test, value) = match argument {
        Argument::HasBits(bits) => (libc::BPF_JSET, bits),
        Argument::Equals(value) => (libc::BPF_JEQ, value),
    };
    let mut filter = [
        load(0),
        jump(libc::BPF_JEQ, call as u32, 3),
        // The low half of the argument on a little-endian machine.
        load(16 + index * 8),
        jump(test, value, 1),
        give(libc::SECCOMP_RET_ERRNO | errno as u32),
        give(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is valid for the call, which copies it.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(installed, 0, "{}", Errno::last());
}
