//! A [`Command`] for Linux that creates a child together with its pidfd, in its control group and
//! with its resource limits. It does not fork, except in [a few cases](#when-the-child-is-forked).
//!
//! A program that supervises processes needs three things that [`std::process::Command`] does not
//! have on stable Rust:
//!
//! * **A pidfd without a race.** The kernel may reuse a pid as soon as the process has been reaped,
//!   so a pidfd that is opened after the spawn may refer to another process. Here the system call
//!   that creates the child also returns its pidfd.
//! * **Limits from the first instruction.** The kernel creates the child in its
//!   [control group](Command::cgroup). The child has its [resource limits](Command::rlimit), its
//!   [CPUs](Command::affinity) and its [nice value](Command::nice) before it executes the program.
//! * **A cost that does not depend on the memory of the parent.** std forks if the command sets a
//!   [user ID](Command::uid) or has a closure for what std has no method for. A fork copies the page
//!   tables, which takes tens of milliseconds in a process of a few gigabytes. Here the child shares
//!   the memory of its parent until it executes the program.
//!
//! ```
//! use pidfd_spawn::{Command, Resource};
//!
//! let mut child = Command::new("sleep")
//!     .arg("1000")
//!     .no_new_privs(true)
//!     .rlimit(Resource::Core, 0, 0)
//!     .spawn()?;
//! child.kill()?;
//! assert!(!child.wait()?.success());
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The crate is synchronous. An event loop can poll [`Child::pidfd`], which is readable once the
//! child has exited.
//!
//! # When to use something else
//!
//! * Use [`std::process::Command`] in a program that must run on other systems than Linux, and for
//!   children that are waited for where they are spawned. It is as safe, and nearly as fast for a
//!   child without further attributes.
//! * Use the crate [`shim-reaper`](https://docs.rs/shim-reaper) in a tokio program whose children
//!   outlive the task that spawns them. It accepts the [`Command`] and the [`Child`] of this crate,
//!   and reaps each child.
//!
//! # How it works
//!
//! The parent prepares all that the child needs: C strings, the paths to try, and descriptors whose
//! numbers do not collide. Then `clone3(CLONE_VM | CLONE_VFORK | CLONE_PIDFD)` creates a child that
//! shares the memory of the parent, and suspends the calling thread. The child makes system calls
//! only. If a step fails, the child writes the step and the error number to the shared memory and
//! exits; the parent reaps it and returns a [`SpawnError`].
//!
//! The calling thread blocks all signals during the spawn. The child resets the signal handlers
//! before it unblocks them, so that no handler of the parent runs in the child.
//!
//! The calling thread continues when the child executes the program. Until then it also waits for a
//! child that is stopped by SIGSTOP, whose control group is frozen, or whose program is on a file
//! system that does not respond. A forked child makes it wait as well.
//!
//! # When the child is forked
//!
//! * If the command has a [`pre_exec`](Command::pre_exec) closure, which could write to the memory of
//!   the parent.
//! * If `memory.oom.group` is set in the control group of the child, or in one above it. When such a
//!   group runs out of memory, the kernel kills all processes in it, and all that share memory with
//!   one of them (`mm/oom_kill.c`): the parent too. Set the file before the spawn, not during it.
//! * On architectures other than x86-64 and AArch64, and where the kernel or a seccomp filter refuses
//!   the system calls.
//!
//! # Other users
//!
//! A child that changes its [user](Command::uid) or [group](Command::gid) shares the memory of its
//! parent until it executes the program. Two measures protect that memory from the new user:
//!
//! * The child keeps the saved user ID of its parent. The kernel then does not let processes of the
//!   new user trace the child or read its memory (`ptrace(2)`, "Ptrace access mode checking"). They
//!   can send it signals.
//! * The child makes the memory not *dumpable* (`PR_SET_DUMPABLE(2const)`), so that no signal writes
//!   it to a core dump of the new user.
//!
//! The second measure also has an effect on the parent until the spawn returns and makes its memory
//! dumpable again: the parent writes no core dump, and its files in `/proc` belong to root. A process
//! that the parent forks in the meantime keeps the attribute. A parent that makes itself not dumpable
//! should not do so during such a spawn, which would revert it.
//!
//! # Kernel requirements
//!
//! Linux 5.4. The crate detects newer interfaces at each spawn, also if a seccomp filter of the calling
//! thread refuses them, and has a fallback for each:
//!
//! | interface | since | without it |
//! |---|---|---|
//! | `pidfd_send_signal(2)` | 5.1 | required |
//! | `clone(2)` with `CLONE_PIDFD` | 5.2 | the child is forked |
//! | `pidfd_open(2)` | 5.3 | required where the child is forked: it opens its own pidfd and sends it to the parent |
//! | `clone3(2)` | 5.3 | `clone(2)` |
//! | `waitid(2)` with `P_PIDFD` | 5.4 | required |
//! | `CLONE_CLEAR_SIGHAND` | 5.5 | the child resets each signal handler |
//! | `CLONE_INTO_CGROUP` | 5.7 | the child writes to `cgroup.procs`, or `tasks` of version 1 |
//! | `close_range(2)` with `CLOSE_RANGE_UNSHARE` | 5.9 | a child that [inherits no descriptors](Command::inherit_descriptors) starts with a copy of them, and if `unshare(2)` is refused too, the later ones of the calling thread are created with it |
//! | `close_range(2)` with `CLOSE_RANGE_CLOEXEC` | 5.11 | that child hides the descriptors that `/proc/self/fd` lists |
//! | `landlock_restrict_self(2)` | 5.13 | a command with [rules](Command::landlock) does not start |
//! | `PIDFD_INFO_EXIT` | 6.15 | the exit status is unknown if other code has reaped the child |

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("pidfd-spawn requires Linux on a 64-bit architecture");

mod c_strings;
mod child;
mod command;
mod descriptors;
mod environment;
mod error;
mod path_search;
mod plan;
mod resource;
mod stdio;
mod sys;

pub use child::{Child, ChildParts};
pub use command::Command;
pub use error::{SpawnError, Step};
pub use resource::Resource;
pub use stdio::Stdio;
pub use sys::reserve_descriptors;

/// System calls that `shim-reaper` makes too. Not part of the API, and not for other crates. Published
/// versions of `shim-reaper` use it, so change it only compatibly.
#[doc(hidden)]
pub mod __private {
    pub use crate::sys::{
        PIDFD_INFO_EXIT, PidfdInfo, Received, WaitFor, exit_status, pidfd_open, pidfd_send_signal,
        receive, send, waitid,
    };
}

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
