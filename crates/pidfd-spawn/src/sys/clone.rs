//! Creates children in shared memory.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process;

use super::call::Errno;
use super::child::{self, Birth, Memory};
use super::dumpable;
use super::entry::clone_in_shared_memory;
use super::inheritance;
use super::pidfd::{self, Born};
use super::signals::Blocked;
use super::slots::Slots;
use crate::error::{Failure, Step};
use crate::plan::Plan;

/// The flags of every child here. The parent is suspended until the child has executed its program.
const FLAGS: u64 = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64;

fn flags(birth: &Birth) -> u64 {
    match birth.slots {
        Some(_) => FLAGS | libc::CLONE_FILES as u64,
        None => FLAGS,
    }
}

/// Resets the signals that are handled: Linux 5.5.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// Creates the child in a control group: Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// What the kernel and the seccomp filter of the calling thread allow, as far as the system calls of one
/// spawn have shown.
///
/// The next spawn starts again with all features. A filter belongs to a thread, so that its errors say
/// nothing about other threads, and a refused system call takes less than a hundredth of a spawn.
#[derive(Clone, Copy)]
struct Features {
    clone3: bool,
    clear_sighand: bool,
    into_cgroup: bool,
}

impl Features {
    const ALL: Self = Self {
        clone3: true,
        clear_sighand: true,
        into_cgroup: true,
    };

    /// Those of `clone(2)`.
    const NONE: Self = Self {
        clone3: false,
        clear_sighand: false,
        into_cgroup: false,
    };
}

/// The argument of [`begin`], which the parent and the child share.
struct Start<'a, 'b> {
    plan: &'a mut Plan<'b>,
    birth: Birth,
    /// The child's pidfd, which the kernel stores before the child runs.
    pidfd: RawFd,
    /// Whether the kernel or a seccomp filter has refused to let the child leave the shared table of
    /// descriptors.
    is_refused: bool,
    failure: Option<Failure>,
}

/// Spawns a child in shared memory. Returns `None` if the kernel or a seccomp filter refuses it: the
/// child must then be forked.
pub(super) fn spawn(plan: &mut Plan<'_>) -> Result<Option<Born>, Failure> {
    spawn_with(plan, Features::ALL)
}

fn spawn_with(plan: &mut Plan<'_>, features: Features) -> Result<Option<Born>, Failure> {
    let _protection = plan
        .attributes
        .change_user()
        .then(dumpable::Protection::new);
    let mut start = Start {
        plan,
        birth: Birth::new(Memory::Shared, process::id()),
        pidfd: -1,
        is_refused: false,
        failure: None,
    };
    start.birth.slots = Slots::fill(start.plan);
    let created = {
        let blocked = Blocked::new();
        start.birth.mask = blocked.previous();
        create(&mut start, features)
    };
    let Some(pid) = created? else {
        return Ok(None);
    };

    if start.pidfd < 0 {
        pidfd::reap_pid(pid);
        return Err(no_pidfds());
    }
    // SAFETY: the kernel has just created this descriptor and no other code has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(start.pidfd) };
    if let Some(failure) = start.failure {
        pidfd::reap(&pidfd);
        return match start.birth.slots {
            Some(slots) if start.is_refused => {
                slots.disable_in_thread();
                // Without slots.
                spawn_with(start.plan, features)
            }
            _ => Err(failure),
        };
    }
    Ok(Some(Born { pid, pidfd }))
}

/// Before Linux 5.2 the kernel ignores `CLONE_PIDFD`, and has no other way to open a pidfd.
fn no_pidfds() -> Failure {
    Failure {
        step: Step::Pidfd,
        errno: libc::ENOSYS,
    }
}

/// Creates the child with the best system call that is allowed. Returns its pid, or `None` if none is.
fn create(start: &mut Start<'_, '_>, mut features: Features) -> Result<Option<u32>, Failure> {
    let cgroups = &start.plan.attributes.cgroups;
    // The first control group that may be of version 2.
    let mut index = 0;
    loop {
        let clears = features.clear_sighand;
        let cgroup = cgroups.get(index).filter(|_| features.into_cgroup);
        let cgroup = cgroup.map(AsRawFd::as_raw_fd);
        start.birth.handlers_are_reset = clears;
        start.birth.cgroup = cgroup.map(|_| index);

        let result = if features.clone3 {
            clone3(start, clears, cgroup)
        } else {
            clone(start)
        };
        match result {
            Err(libc::E2BIG | libc::EINVAL) if cgroup.is_some() => features.into_cgroup = false,
            Err(libc::EBADF) if cgroup.is_some() => index += 1,
            Err(libc::EINVAL) if clears => features.clear_sighand = false,
            Err(libc::ENOSYS | libc::EPERM | libc::EINVAL) if features.clone3 => {
                features = Features::NONE;
            }
            Err(libc::ENOSYS | libc::EPERM | libc::EINVAL) => return Ok(None),
            Err(errno) => {
                let step = if cgroup.is_some() && is_of_cgroup(errno) {
                    Step::Cgroup
                } else {
                    Step::Clone
                };
                return Err(Failure { step, errno });
            }
            Ok(pid) => return Ok(Some(pid)),
        }
    }
}

/// Returns true if `clone3` fails with this error only for the control group: `cgroup_css_set_fork`
/// in the kernel.
fn is_of_cgroup(errno: Errno) -> bool {
    matches!(
        errno,
        libc::EACCES | libc::EBUSY | libc::ENODEV | libc::ENOENT | libc::EOPNOTSUPP | libc::EROFS
    )
}

/// The `struct clone_args` of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The size of its first version, in Linux 5.3.
const SIZE_WITHOUT_CGROUP: usize = 64;

fn clone3(start: &mut Start<'_, '_>, clears: bool, cgroup: Option<RawFd>) -> Result<u32, Errno> {
    let mut args = CloneArgs {
        flags: flags(&start.birth),
        pidfd: (&raw mut start.pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let mut size = SIZE_WITHOUT_CGROUP;
    if clears {
        args.flags |= CLONE_CLEAR_SIGHAND;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup as u64;
        size = size_of::<CloneArgs>();
    }
    create_with(
        libc::SYS_clone3,
        [(&raw const args) as usize, size, 0, 0, 0],
        start,
    )
}

/// Uses the older system call, with `CLONE_PIDFD` of Linux 5.2. It stores the pidfd through its third
/// argument, `parent_tid`.
fn clone(start: &mut Start<'_, '_>) -> Result<u32, Errno> {
    let flags = flags(&start.birth) as usize | libc::SIGCHLD as usize;
    create_with(
        libc::SYS_clone,
        [flags, 0, (&raw mut start.pidfd) as usize, 0, 0],
        start,
    )
}

fn create_with(
    number: libc::c_long,
    args: [usize; 5],
    start: *mut Start<'_, '_>,
) -> Result<u32, Errno> {
    // SAFETY: both callers pass the flags, and pointers to memory that outlives the call. `begin`
    // makes system calls on what `start` refers to, which only this suspended thread has.
    let result = unsafe { clone_in_shared_memory(number as usize, args, begin, start) };
    u32::try_from(result).map_err(|_| -result as c_int)
}

/// Runs in the child.
///
/// # Safety
///
/// `start` must be valid and not in use by other code that runs.
unsafe extern "C" fn begin(start: *mut Start<'_, '_>) -> ! {
    // SAFETY: by the contract of this function.
    let start = unsafe { &mut *start };
    start.failure = Some(run(start));
    child::exit()
}

/// Takes the steps of the child. Returns only if one fails.
fn run(start: &mut Start<'_, '_>) -> Failure {
    if start.pidfd < 0 {
        return no_pidfds();
    }
    if let Some(slots) = &start.birth.slots {
        if let Err(errno) = inheritance::leave_shared_table(slots) {
            start.is_refused = matches!(errno, libc::ENOSYS | libc::EPERM | libc::EINVAL);
            return Failure {
                step: Step::Descriptors,
                errno,
            };
        }
    }
    child::run(start.plan, &start.birth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Child, Command, SpawnError, Stdio};

    /// Seccomp filters, which force the other fallbacks, do not see the flags of `clone3`.
    #[test]
    fn a_child_can_be_created_without_clear_sighand() {
        let spawn = |program| -> Result<Child, SpawnError> {
            let features = Features {
                clear_sighand: false,
                ..Features::ALL
            };
            let mut command = Command::new(program);
            let inherited = [Stdio::INHERIT, Stdio::INHERIT, Stdio::INHERIT];
            let (born, streams) = command.launch(&inherited, |plan| {
                spawn_with(plan, features).map(Option::unwrap)
            })?;
            Ok(Child::new(born.pid, born.pidfd, streams))
        };
        assert!(spawn("/bin/true").unwrap().wait().unwrap().success());
        assert_eq!(spawn("/nonexistent").unwrap_err().step(), Step::Exec);
    }
}
