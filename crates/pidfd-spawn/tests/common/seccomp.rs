//! Filters that refuse system calls to this process, as a container's do.

use std::mem::offset_of;

use nix::errno::Errno;
use nix::libc;

/// Refuses a system call with an error.
pub struct Refuse {
    pub call: libc::c_long,
    pub when: When,
    pub with: Errno,
}

pub enum When {
    Always,
    /// The first argument has one of these bits.
    FirstHas(u32),
    /// The second argument is this.
    SecondIs(u32),
}

/// Installs a filter for this thread and the processes that it creates.
pub fn refuse(rules: &[Refuse]) {
    let mut filter = Vec::new();
    for rule in rules {
        let condition = match rule.when {
            When::Always => vec![],
            When::FirstHas(bits) => vec![load(argument(0)), jump(libc::BPF_JSET, bits, 1)],
            When::SecondIs(value) => vec![load(argument(1)), jump(libc::BPF_JEQ, value, 1)],
        };
        let behind = u8::try_from(condition.len()).unwrap() + 1;
        filter.push(load(offset_of!(libc::seccomp_data, nr)));
        filter.push(jump(
            libc::BPF_JEQ,
            u32::try_from(rule.call).unwrap(),
            behind,
        ));
        filter.extend(condition);
        filter.push(give(libc::SECCOMP_RET_ERRNO | rule.with as u32));
    }
    filter.push(give(libc::SECCOMP_RET_ALLOW));

    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is valid for the call, which copies it.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    assert_eq!(installed, 0, "{}", Errno::last());
}

/// The offset of the low half of an argument, on a little-endian machine.
fn argument(index: usize) -> usize {
    offset_of!(libc::seccomp_data, args) + index * size_of::<u64>()
}

fn load(offset: usize) -> libc::sock_filter {
    statement(
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        u32::try_from(offset).unwrap(),
    )
}

fn give(value: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, value)
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: 0,
        k,
    }
}

/// Skips `otherwise` statements unless the condition holds.
fn jump(condition: u32, k: u32, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(libc::BPF_JMP | condition | libc::BPF_K).unwrap(),
        jt: 0,
        jf: otherwise,
        k,
    }
}
