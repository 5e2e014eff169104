//! Keeps descriptors of the parent from the program that a child executes. Async-signal-safe.

use std::ffi::c_int;
use std::os::fd::RawFd;

use super::call::{Errno, call};
use super::slots::Slots;
use crate::descriptors::Move;

const FIRST: RawFd = libc::STDERR_FILENO + 1;

/// Gives the child a table of descriptors of its own, with the lowest of those that it shares with its
/// parent.
pub(super) fn leave_shared_table(slots: &Slots) -> Result<(), Errno> {
    let arguments = [
        slots.end().into(),
        u32::MAX.into(),
        libc::CLOSE_RANGE_UNSHARE.into(),
    ];
    // SAFETY: takes integers. It closes the descriptors of this process only.
    let left = unsafe { call(libc::SYS_close_range, arguments) };
    // Otherwise with all of them. SAFETY: takes an integer.
    left.or_else(|_| unsafe { call(libc::SYS_unshare, [libc::CLONE_FILES.into()]) })?;
    Ok(())
}

/// Makes all descriptors close-on-exec, except the standard streams and the targets of these moves.
pub(super) fn hide_others(moves: &[Move]) -> Result<(), Errno> {
    match hide_ranges(moves) {
        // Before Linux 5.11, or refused by a seccomp filter.
        Err(libc::ENOSYS | libc::EINVAL | libc::EPERM) => hide_listed(moves),
        result => result,
    }
}

/// Hides the ranges between the targets.
fn hide_ranges(moves: &[Move]) -> Result<(), Errno> {
    let mut first = FIRST;
    loop {
        let targets = moves.iter().map(|planned| planned.to);
        let next = targets.filter(|target| *target >= first).min();
        let last = next.map_or(u32::MAX, |next| next.unsigned_abs() - 1);
        if first.unsigned_abs() <= last {
            let arguments = [first.into(), last.into(), libc::CLOSE_RANGE_CLOEXEC.into()];
            // SAFETY: takes integers.
            unsafe { call(libc::SYS_close_range, arguments) }?;
        }
        match next {
            Some(next) => first = next + 1,
            None => return Ok(()),
        }
    }
}

/// The offsets of the fields of a `struct linux_dirent64`, `getdents64(2)`.
const RECORD_LENGTH: usize = 16;
const NAME: usize = 19;

/// Hides the descriptors that `/proc` lists.
fn hide_listed(moves: &[Move]) -> Result<(), Errno> {
    let path = c"/proc/self/fd".as_ptr();
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: takes integers and a C string.
    let dir = unsafe {
        call(
            libc::SYS_openat,
            [libc::AT_FDCWD.into(), path.into(), flags.into()],
        )
    }?;
    let mut entries = [0_u8; 1024];
    loop {
        let arguments = [
            dir.into(),
            entries.as_mut_ptr().into(),
            entries.len().into(),
        ];
        // SAFETY: the buffer has the given length.
        let length = unsafe { call(libc::SYS_getdents64, arguments) }?;
        if length == 0 {
            // SAFETY: this function has opened it.
            unsafe { call(libc::SYS_close, [dir.into()]) }?;
            return Ok(());
        }
        let mut rest = entries.get(..length).unwrap_or_default();
        while let Some(&[low, high]) = rest.get(RECORD_LENGTH..RECORD_LENGTH + 2) {
            let name = rest.get(NAME..).unwrap_or_default();
            let next = usize::from(u16::from_ne_bytes([low, high]));
            let is_hidden = |number: &RawFd| {
                *number >= FIRST && !moves.iter().any(|planned| planned.to == *number)
            };
            if let Some(number) = number_of(name).filter(is_hidden) {
                let arguments = [number, libc::F_SETFD, libc::FD_CLOEXEC];
                // SAFETY: takes integers.
                unsafe { call(libc::SYS_fcntl, arguments.map(Into::into)) }?;
            }
            rest = rest.get(next..).unwrap_or_default();
        }
    }
}

/// Returns the number that a C string starts with: none for `.` and `..`.
fn number_of(name: &[u8]) -> Option<c_int> {
    let digits = name.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number: Option<c_int>, digit| {
        let digit = c_int::from(digit - b'0');
        Some(number.unwrap_or(0).wrapping_mul(10).wrapping_add(digit))
    })
}
