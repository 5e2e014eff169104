//! The steps of a child between its creation and `exec`.
//!
//! All of it is async-signal-safe: it makes system calls on what the parent has prepared. It does
//! not allocate, take locks or panic, because it may run in the parent's memory, or in a copy of it
//! in which other threads hold locks forever.

use std::convert::Infallible;
use std::ffi::{CStr, c_int};
use std::hint;
use std::os::fd::{AsRawFd, RawFd};

use super::call::{Arg, Errno, NULL, call, prctl};
use super::signals::{self, Mask};
use super::slots::Slots;
use super::{credentials, dumpable, inheritance};
use crate::Resource;
use crate::error::{Failure, Step, errno_of};
use crate::plan::{Attributes, Plan, PreExec, Rlimit};

/// The memory in which the steps run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// That of the suspended parent.
    Shared,
    /// A copy of the parent's.
    Copied,
    /// That of the calling process, which only executes another program.
    Own,
}

/// How the child was created. The plan does not determine this.
pub(super) struct Birth {
    memory: Memory,
    /// The process whose death sends [`Attributes::parent_death_signal`].
    pub(super) parent: u32,
    /// The signal mask of the parent.
    pub(super) mask: Mask,
    /// Whether the kernel has reset the signals that the parent handles.
    pub(super) handlers_are_reset: bool,
    /// The index of the control group in which the kernel has created the child.
    pub(super) cgroup: Option<usize>,
    /// What the child gets, if it was created with the table of descriptors of its parent.
    pub(super) slots: Option<Slots>,
}

impl Birth {
    pub(super) fn new(memory: Memory, parent: u32) -> Self {
        Self {
            memory,
            parent,
            mask: 0,
            // `exec` itself resets them.
            handlers_are_reset: memory == Memory::Own,
            cgroup: None,
            slots: None,
        }
    }
}

/// Takes the steps of the plan. Returns only if one fails.
pub(super) fn run(plan: &mut Plan<'_>, birth: &Birth) -> Failure {
    let Err(failure) = try_run(plan, birth);
    failure
}

/// Ends the child that could not execute its program.
pub(super) fn exit() -> ! {
    loop {
        // SAFETY: ends this process. The exit functions of the parent's program do not run.
        let _ = unsafe { call(libc::SYS_exit_group, [127.into()]) };
    }
}

fn try_run(plan: &mut Plan<'_>, birth: &Birth) -> Result<Infallible, Failure> {
    let attributes = plan.attributes;
    check(Step::Signals, reset_signals(attributes, birth))?;
    check(Step::Cgroup, join_cgroups(attributes, birth))?;
    check(Step::NetworkNamespace, join_network_namespace(attributes))?;
    // Before the limits, which may forbid the numbers.
    check(Step::Descriptors, place_descriptors(plan, birth))?;
    // Before the user changes, because it may need privileges.
    check(Step::Rlimit, set_rlimits(&attributes.rlimits))?;
    check(Step::Affinity, set_affinity(attributes))?;
    check(Step::Nice, set_nice(attributes))?;
    set_user(attributes, birth)?;
    check(Step::CurrentDir, change_dir(plan))?;
    check(Step::ProcessGroup, set_process_group(attributes))?;
    check(Step::Setsid, set_session(attributes))?;
    check(
        Step::ControllingTerminal,
        set_controlling_terminal(attributes),
    )?;
    check(Step::NoNewPrivs, set_no_new_privs(attributes))?;
    // After no_new_privs, which it needs.
    check(Step::Landlock, apply_landlock(plan))?;
    // After the user has changed, which clears it.
    check(
        Step::ParentDeathSignal,
        set_parent_death_signal(attributes, birth),
    )?;
    // All handlers are reset, so from here on signals may arrive.
    let mask = if attributes.inherit_signal_mask {
        birth.mask
    } else {
        0
    };
    check(Step::Signals, signals::set_mask(mask, None))?;
    check(Step::PreExec, run_closures(plan.pre_exec))?;
    check(Step::Exec, execute(plan))
}

fn check<T>(step: Step, result: Result<T, Errno>) -> Result<T, Failure> {
    result.map_err(|errno| Failure { step, errno })
}

fn reset_signals(attributes: &Attributes, birth: &Birth) -> Result<(), Errno> {
    if attributes.reset_ignored_signals || !birth.handlers_are_reset {
        signals::set_all_default(attributes.reset_ignored_signals)?;
    }
    signals::set_default(libc::SIGPIPE)
}

fn join_cgroups(attributes: &Attributes, birth: &Birth) -> Result<(), Errno> {
    for (index, cgroup) in attributes.cgroups.iter().enumerate() {
        if birth.cgroup != Some(index) {
            join_cgroup(cgroup.as_raw_fd())?;
        }
    }
    Ok(())
}

/// Moves the child, which has one thread. Version 1 has `tasks`, whose writer does not wait for an RCU grace
/// period when it moves itself, as a writer to `cgroup.procs` does (`cgroup_procs_write_start`, Linux 5.5).
fn join_cgroup(cgroup: RawFd) -> Result<(), Errno> {
    match write_own_pid(cgroup, c"tasks") {
        Err(libc::ENOENT) => write_own_pid(cgroup, c"cgroup.procs"),
        result => result,
    }
}

fn write_own_pid(cgroup: RawFd, file: &CStr) -> Result<(), Errno> {
    let own_pid = b"0";
    // SAFETY: the name is a C string, and the buffer has the given length.
    unsafe {
        let fd = call(
            libc::SYS_openat,
            [
                cgroup.into(),
                file.as_ptr().into(),
                (libc::O_WRONLY | libc::O_CLOEXEC).into(),
            ],
        )?;
        let written = call(
            libc::SYS_write,
            [fd.into(), own_pid.as_ptr().into(), own_pid.len().into()],
        );
        // Its number may be that of a descriptor to be placed.
        call(libc::SYS_close, [fd.into()])?;
        written?;
    }
    Ok(())
}

fn join_network_namespace(attributes: &Attributes) -> Result<(), Errno> {
    if let Some(namespace) = &attributes.network_namespace {
        let arguments = [namespace.as_raw_fd().into(), libc::CLONE_NEWNET.into()];
        // SAFETY: takes integers, and changes the calling thread only.
        unsafe { call(libc::SYS_setns, arguments) }?;
    }
    Ok(())
}

fn place_descriptors(plan: &Plan<'_>, birth: &Birth) -> Result<(), Errno> {
    let planned = plan.descriptors.moves();
    let moves = birth.slots.as_ref().map_or(planned, Slots::moves);
    for planned in moves {
        // Both clear close-on-exec.
        let (number, args) = if planned.from == planned.to {
            (libc::SYS_fcntl, [planned.to, libc::F_SETFD, 0])
        } else {
            (libc::SYS_dup3, [planned.from, planned.to, 0])
        };
        // SAFETY: the child has a table of descriptors of its own, and no code that owns one of them
        // runs in the child.
        unsafe { call(number, args.map(Arg::from)) }?;
    }
    if plan.attributes.hide_descriptors {
        inheritance::hide_others(moves)?;
    }
    Ok(())
}

fn set_rlimits(rlimits: &[Rlimit]) -> Result<(), Errno> {
    // These may forbid the stack to grow.
    let limits_stack = |rlimit: &Rlimit| {
        matches!(
            rlimit.resource,
            Resource::As | Resource::Memlock | Resource::Stack
        )
    };
    if rlimits.iter().any(limits_stack) {
        grow_stack();
    }
    for rlimit in rlimits {
        let limits = [rlimit.soft, rlimit.hard];
        // SAFETY: the limits are a `struct rlimit64`: two integers. 0 is the calling process.
        unsafe {
            call(
                libc::SYS_prlimit64,
                [
                    0.into(),
                    rlimit.resource.raw().into(),
                    limits.as_ptr().into(),
                    NULL.into(),
                ],
            )
        }?;
    }
    Ok(())
}

/// Maps more of the stack than all later steps need.
#[inline(never)]
fn grow_stack() {
    hint::black_box(&mut [0_u8; 16 * 1024]);
}

fn set_affinity(attributes: &Attributes) -> Result<(), Errno> {
    let Some(mask) = &attributes.affinity else {
        return Ok(());
    };
    // SAFETY: the pointer is valid for that many bytes. 0 is the calling thread.
    unsafe {
        call(
            libc::SYS_sched_setaffinity,
            [
                0.into(),
                size_of_val(mask.as_slice()).into(),
                mask.as_ptr().into(),
            ],
        )
    }?;
    Ok(())
}

fn set_nice(attributes: &Attributes) -> Result<(), Errno> {
    if let Some(nice) = attributes.nice {
        // SAFETY: takes integers. 0 is the calling thread.
        unsafe {
            call(
                libc::SYS_setpriority,
                [(libc::PRIO_PROCESS as c_int).into(), 0.into(), nice.into()],
            )
        }?;
    }
    Ok(())
}

fn set_user(attributes: &Attributes, birth: &Birth) -> Result<(), Failure> {
    if let Some(groups) = &attributes.groups {
        check(Step::Groups, credentials::set_groups(groups))?;
    }
    if let Some(gid) = attributes.gid {
        check(Step::Gid, credentials::set_gid(gid))?;
    }
    if let Some(uid) = attributes.uid {
        if attributes.groups.is_none() {
            match credentials::set_groups(&[]) {
                // As std: without the privilege there are none to drop.
                Err(libc::EPERM) => {}
                result => check(Step::Groups, result)?,
            }
        }
        let set_uid = match birth.memory {
            Memory::Shared => credentials::set_uid_in_shared_memory,
            Memory::Copied | Memory::Own => credentials::set_uid,
        };
        check(Step::Uid, set_uid(uid))?;
    }
    if attributes.change_user() && birth.memory == Memory::Shared {
        // Before signals are unblocked: see `dumpable`.
        check(Step::Uid, dumpable::forbid())?;
    }
    Ok(())
}

fn change_dir(plan: &Plan<'_>) -> Result<(), Errno> {
    if let Some(dir) = &plan.current_dir {
        // SAFETY: takes a C string.
        unsafe { call(libc::SYS_chdir, [dir.as_ptr().into()]) }?;
    }
    Ok(())
}

fn set_process_group(attributes: &Attributes) -> Result<(), Errno> {
    // The leader of a group cannot create a session, which has a new group anyway.
    let pgroup = attributes
        .process_group
        .filter(|pgroup| !attributes.setsid || *pgroup != 0);
    if let Some(pgroup) = pgroup {
        // SAFETY: takes integers. 0 is the calling process.
        unsafe { call(libc::SYS_setpgid, [0.into(), pgroup.into()]) }?;
    }
    Ok(())
}

fn set_session(attributes: &Attributes) -> Result<(), Errno> {
    if attributes.setsid {
        // SAFETY: takes no arguments.
        unsafe { call(libc::SYS_setsid, []) }?;
    }
    Ok(())
}

fn set_controlling_terminal(attributes: &Attributes) -> Result<(), Errno> {
    if attributes.controlling_terminal {
        // 0: do not take the terminal from another session.
        let arguments = [
            libc::STDIN_FILENO.into(),
            (libc::TIOCSCTTY as usize).into(),
            0.into(),
        ];
        // SAFETY: takes integers.
        unsafe { call(libc::SYS_ioctl, arguments) }?;
    }
    Ok(())
}

fn set_no_new_privs(attributes: &Attributes) -> Result<(), Errno> {
    if attributes.no_new_privs {
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    }
    Ok(())
}

fn apply_landlock(plan: &Plan<'_>) -> Result<(), Errno> {
    if let Some(ruleset) = &plan.landlock {
        let arguments = [ruleset.as_raw_fd().into(), 0.into()];
        // SAFETY: takes integers, and changes the calling thread only.
        unsafe { call(libc::SYS_landlock_restrict_self, arguments) }?;
    }
    Ok(())
}

fn set_parent_death_signal(attributes: &Attributes, birth: &Birth) -> Result<(), Errno> {
    match attributes.parent_death_signal {
        Some(signal) => die_with(birth.parent, signal),
        None => Ok(()),
    }
}

/// Makes the kernel send the signal to this process when its parent dies. Sends it if the parent has
/// died already.
pub(super) fn die_with(parent: u32, signal: c_int) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, signal)?;
    // SAFETY: take integers or nothing.
    unsafe {
        let current = call(libc::SYS_getppid, [])?;
        // It is 0 if the parent is in an outer PID namespace.
        if current != 0 && current != parent as usize {
            let pid = call(libc::SYS_getpid, [])?;
            call(libc::SYS_kill, [pid.into(), signal.into()])?;
        }
    }
    Ok(())
}

fn run_closures(closures: &mut [PreExec]) -> Result<(), Errno> {
    for closure in closures {
        closure().map_err(|error| errno_of(&error))?;
    }
    Ok(())
}

/// Executes the first candidate that is an executable file, as `execvp(3)` does.
fn execute(plan: &Plan<'_>) -> Result<Infallible, Errno> {
    let mut error = libc::ENOENT;
    let mut is_denied = false;
    for path in plan.candidates.iter() {
        // SAFETY: takes a C string and two arrays of C strings with a null pointer at their ends.
        let result = unsafe {
            call(
                libc::SYS_execve,
                [
                    path.into(),
                    plan.arguments.as_ptr().into(),
                    plan.environment.as_ptr().into(),
                ],
            )
        };
        let Err(errno) = result else { continue };
        error = errno;
        match errno {
            libc::EACCES => is_denied = true,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            _ => return Err(errno),
        }
    }
    Err(if is_denied { libc::EACCES } else { error })
}
