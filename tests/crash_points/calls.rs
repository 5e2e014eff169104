//! The system calls that change something outside of the calling process, or open a file.

use nix::libc::{self, c_long};

/// What a system call works on. The numbers are those of its arguments.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Opens the file `path`, and creates it if `flags` say so.
    Open { path: usize, flags: usize },
    /// Changes the entry `path` of a directory.
    Entry { path: usize },
    /// Writes or syncs the descriptor that is the first argument.
    Descriptor,
    /// Acts on a process, a socket or a lock.
    Other,
}

use Kind::{Descriptor, Entry, Open, Other};

/// The system calls by number, with their names.
#[rustfmt::skip]
pub const CALLS: &[(c_long, &str, Kind)] = &[
    (libc::SYS_openat, "openat", Open { path: 1, flags: 2 }),
    (libc::SYS_mkdirat, "mkdirat", Entry { path: 1 }),
    (libc::SYS_unlinkat, "unlinkat", Entry { path: 1 }),
    (libc::SYS_linkat, "linkat", Entry { path: 3 }),
    (libc::SYS_symlinkat, "symlinkat", Entry { path: 2 }),
    (libc::SYS_renameat, "renameat", Entry { path: 3 }),
    (libc::SYS_renameat2, "renameat2", Entry { path: 3 }),
    (libc::SYS_fchmodat, "fchmodat", Entry { path: 1 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_open, "open", Open { path: 0, flags: 1 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_mkdir, "mkdir", Entry { path: 0 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_rmdir, "rmdir", Entry { path: 0 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_unlink, "unlink", Entry { path: 0 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_link, "link", Entry { path: 1 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_symlink, "symlink", Entry { path: 1 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_rename, "rename", Entry { path: 1 }),
    #[cfg(target_arch = "x86_64")] (libc::SYS_chmod, "chmod", Entry { path: 0 }),
    (libc::SYS_write, "write", Descriptor),
    (libc::SYS_writev, "writev", Descriptor),
    (libc::SYS_pwrite64, "pwrite64", Descriptor),
    (libc::SYS_fsync, "fsync", Descriptor),
    (libc::SYS_fdatasync, "fdatasync", Descriptor),
    (libc::SYS_ftruncate, "ftruncate", Descriptor),
    (libc::SYS_fallocate, "fallocate", Descriptor),
    (libc::SYS_fchmod, "fchmod", Descriptor),
    (libc::SYS_flock, "flock", Other),
    (libc::SYS_bind, "bind", Other),
    (libc::SYS_sendto, "sendto", Other),
    (libc::SYS_sendmsg, "sendmsg", Other),
    (libc::SYS_setsid, "setsid", Other),
    (libc::SYS_clone, "clone", Other),
    (libc::SYS_clone3, "clone3", Other),
    #[cfg(target_arch = "x86_64")] (libc::SYS_fork, "fork", Other),
    #[cfg(target_arch = "x86_64")] (libc::SYS_vfork, "vfork", Other),
    (libc::SYS_execve, "execve", Entry { path: 0 }),
    (libc::SYS_kill, "kill", Other),
    (libc::SYS_tgkill, "tgkill", Other),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal", Other),
    (libc::SYS_waitid, "waitid", Other),
    (libc::SYS_wait4, "wait4", Other),
    (libc::SYS_exit_group, "exit_group", Other),
    // Marks the operation.
    (MARK, "getsid", Other),
];

/// A subject calls it with [`BEGIN`] and [`END`] in place of a pid.
pub const MARK: c_long = libc::SYS_getsid;
pub const BEGIN: i32 = i32::MAX;
pub const END: i32 = i32::MAX - 1;
