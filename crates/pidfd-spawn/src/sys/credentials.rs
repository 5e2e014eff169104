//! Sets the user and groups of the calling thread, as `setuid(2)`, `setgid(2)` and `setgroups(2)` do.
//!
//! The functions of the C library would change all threads of the parent. These are async-signal-safe.

use super::call::{Errno, call, prctl};

const ROOT: u32 = 0;
/// Leaves an ID as it is.
const UNCHANGED: u32 = u32::MAX;

pub(super) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the pointer is valid for that many groups.
    unsafe {
        call(
            libc::SYS_setgroups,
            [groups.len().into(), groups.as_ptr().into()],
        )
    }?;
    Ok(())
}

pub(super) fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: takes an integer.
    unsafe { call(libc::SYS_setgid, [gid.into()]) }?;
    Ok(())
}

pub(super) fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: takes an integer.
    unsafe { call(libc::SYS_setuid, [uid.into()]) }?;
    Ok(())
}

/// Sets the user ID, and leaves the saved one to `exec`, which copies the effective one to it.
///
/// Until then the thread shares the memory of its parent, and no process of the new user may access
/// it: the three user IDs of the thread are not those of one user (`PTRACE_MODE_READ` in
/// `ptrace(2)`).
pub(super) fn set_uid_in_shared_memory(uid: u32) -> Result<(), Errno> {
    if uid == UNCHANGED {
        return Err(libc::EINVAL);
    }
    let capabilities = Capabilities::get()?;
    if !capabilities.can_set_uid() {
        // This sets only the effective ID.
        return set_uid(uid);
    }
    let saved = saved_uid()?;
    // SAFETY: takes integers.
    unsafe {
        call(
            libc::SYS_setresuid,
            [uid.into(), uid.into(), UNCHANGED.into()],
        )
    }?;
    // The kernel drops capabilities when the last ID of root changes.
    if saved == ROOT && uid != ROOT && !keeps_capabilities()? {
        capabilities.drop_permitted()?;
    }
    Ok(())
}

fn saved_uid() -> Result<u32, Errno> {
    let [mut real, mut effective, mut saved] = [0_u32; 3];
    // SAFETY: the pointers are valid for writes of an ID.
    unsafe {
        call(
            libc::SYS_getresuid,
            [
                (&raw mut real).into(),
                (&raw mut effective).into(),
                (&raw mut saved).into(),
            ],
        )
    }?;
    Ok(saved)
}

/// Returns true if changes of user IDs do not concern capabilities: `SECBIT_NO_SETUID_FIXUP` in
/// `capabilities(7)`.
fn keeps_capabilities() -> Result<bool, Errno> {
    const SECBIT_NO_SETUID_FIXUP: usize = 1 << 2;
    let bits = prctl(libc::PR_GET_SECUREBITS, 0)?;
    Ok(bits & SECBIT_NO_SETUID_FIXUP != 0)
}

/// The kernel's `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The capability sets of a thread: capabilities 0 to 31, and 32 to 63.
struct Capabilities([Half; 2]);

impl Capabilities {
    const SETUID: u32 = 7;
    /// `_LINUX_CAPABILITY_VERSION_3`, and 0 for the calling thread.
    const HEADER: [u32; 2] = [0x2008_0522, 0];

    fn get() -> Result<Self, Errno> {
        let mut header = Self::HEADER;
        let mut halves = [Half::default(); 2];
        // SAFETY: the pointers are valid for a header and for two halves.
        unsafe {
            call(
                libc::SYS_capget,
                [header.as_mut_ptr().into(), halves.as_mut_ptr().into()],
            )
        }?;
        Ok(Self(halves))
    }

    fn can_set_uid(&self) -> bool {
        self.0[0].effective & (1 << Self::SETUID) != 0
    }

    /// Drops all permitted capabilities, and with them the effective and the ambient ones.
    fn drop_permitted(&self) -> Result<(), Errno> {
        let mut header = Self::HEADER;
        let halves = self.0.map(|half| Half {
            inheritable: half.inheritable,
            ..Half::default()
        });
        // SAFETY: the pointers are valid for a header and for two halves.
        unsafe {
            call(
                libc::SYS_capset,
                [header.as_mut_ptr().into(), halves.as_ptr().into()],
            )
        }?;
        Ok(())
    }
}
