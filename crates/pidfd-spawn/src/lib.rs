//! A [`Command`] whose child is born with a pidfd, in its control group, with its limits, and
//! without a fork.
//!
//! A program that supervises processes needs three things of a spawn that
//! [`std::process::Command`] does not have on stable Rust:
//!
//! * **An identity.** A pid is recycled; a pidfd opened after the spawn may already be that of
//!   another process, if the kernel or another thread has reaped the child. Here the system call
//!   that creates the child returns its pidfd.
//! * **Confinement from the first instruction.** The child is created in its
//!   [control group](Command::cgroup), and has its [limits](Command::rlimit) before it executes the
//!   program.
//! * **A constant cost.** `std` forks for a [user ID](Command::uid) or a closure that sets what it
//!   has no method for. A fork copies the page tables: tens of milliseconds for a daemon of a few
//!   gigabytes. Here the child shares the memory of its parent until it executes the program.
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
//! # When to use `std` instead
//!
//! If the program must run on other systems than Linux, or if it has a handful of short-lived
//! children whose `wait` follows the spawn. `std` is as safe, and nearly as fast for a child without
//! further attributes.
//!
//! # How it works
//!
//! The parent prepares all that the child needs: C strings, the paths to try, and numbers of
//! descriptors that do not collide. Then `clone3(CLONE_VM | CLONE_VFORK | CLONE_PIDFD)` creates a
//! child that shares the memory, while the calling thread is suspended. The child makes only system
//! calls. It writes the step that fails, and the error number, into the shared memory, and exits;
//! the parent reaps it and returns a [`SpawnError`].
//!
//! All signals are blocked in the calling thread meanwhile, and the child resets its handlers before
//! it unblocks them: no handler of the parent runs in the child.
//!
//! The child is forked instead
//!
//! * if the command has a closure ([`Command::pre_exec`]);
//! * if its control group, or an ancestor of it, has `memory.oom.group` set: when the kernel kills
//!   the processes of such a group, it also kills all that share their memory. Set it before the
//!   spawn.
//!
//! The calling thread waits until the child executes the program, so it also waits while the child is
//! stopped by SIGSTOP, while its control group is frozen, and while the file system of the program
//! does not respond. That holds for a forked child too.
//!
//! # Other users
//!
//! A child that changes its [user](Command::uid) belongs to another user while it still shares the
//! memory of its parent. It keeps the saved user ID of its parent until `exec`, so the kernel keeps
//! processes of that user from tracing it and from reading its memory. They can send it signals.
//!
//! The memory is also not *dumpable* (`PR_SET_DUMPABLE`) from the change of the user or group on, so
//! that no signal writes it to a core dump of that user. As it is also the parent's, the parent has no
//! core dumps, and its files in `/proc` belong to root, until the spawn returns and restores the
//! attribute. A process that the parent forks meanwhile keeps it. A parent that clears the attribute
//! itself should not do so during such a spawn, which would set it again.
//!
//! # Kernel requirements
//!
//! Linux 5.4. Newer interfaces are detected at run time, also if a seccomp filter refuses them, and
//! each has a fallback:
//!
//! | interface | since | without it |
//! |---|---|---|
//! | `pidfd_send_signal(2)` | 5.1 | required |
//! | `clone(2)` with `CLONE_PIDFD` | 5.2 | the child is forked |
//! | `pidfd_open(2)` | 5.3 | required where the child is forked: it opens its own pidfd and sends it to the parent |
//! | `clone3(2)` | 5.3 | `clone(2)` |
//! | `waitid(2)` with `P_PIDFD` | 5.4 | required |
//! | `CLONE_CLEAR_SIGHAND` | 5.5 | the child resets each signal handler |
//! | `CLONE_INTO_CGROUP` | 5.7 | the child writes to `cgroup.procs` |
//! | `PIDFD_INFO_EXIT` | 6.15 | the exit status is unknown if other code has reaped the child |
//!
//! Children share memory on x86-64 and AArch64. On other 64-bit architectures they are forked.

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

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
