//! Low numbers for the descriptors of a child.
//!
//! A child starts with a copy of its parent's table of descriptors, and `exec` closes what it does not
//! inherit: both take longer the more descriptors the parent has open. A child that inherits none of them
//! shares the table instead, and leaves it with `close_range(2)`, which copies only the descriptors below a
//! number. The slots have such numbers, and hold what the child needs for the time of the spawn.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard};

use super::call::{Errno, call};
use crate::descriptors::Move;
use crate::plan::Plan;

/// Three standard streams, and a few others.
const COUNT: usize = 8;

/// Reserved by [`reserve_descriptors`], or by the first spawn that needs them. `/dev/null` when no spawn uses
/// them.
static SLOTS: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether a child of this thread could not leave the shared table. That does not change: neither the
    /// kernel nor a seccomp filter of a thread permits later what it has refused.
    static IS_REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// The descriptors of one child in the slots, until it is dropped.
pub(super) struct Slots {
    slots: MutexGuard<'static, Vec<OwnedFd>>,
    moves: Vec<Move>,
}

impl Slots {
    /// Puts the descriptors of the child into slots. Returns `None` if the child must start with a copy of
    /// the table: it inherits from it or has more descriptors than there are slots, or an earlier one could
    /// not leave it, or another spawn uses the slots, or they cannot be opened.
    pub(super) fn fill(plan: &Plan<'_>) -> Option<Self> {
        let attributes = plan.attributes;
        // The child uses these descriptors in steps of their own.
        let needs_others = !attributes.cgroups.is_empty()
            || attributes.network_namespace.is_some()
            || plan.landlock.is_some();
        if !attributes.hide_descriptors || needs_others || IS_REFUSED.get() {
            return None;
        }
        let mut slots = SLOTS.try_lock().ok()?;
        reserve_in(&mut slots).ok()?;
        let mut filled = Self {
            slots,
            moves: Vec::new(),
        };
        let wanted = plan.descriptors.moves();
        let is_target = |slot: &RawFd| wanted.iter().any(|planned| planned.to == *slot);
        // The first one resets the others.
        let free = filled.slots.iter().skip(1).map(AsRawFd::as_raw_fd);
        let mut free: Vec<_> = free.filter(|slot| !is_target(slot)).collect();
        for planned in wanted {
            let slot = free.pop()?;
            // Dropped if it fails, which resets the slots that are filled already.
            replace(slot, planned.from).ok()?;
            filled.moves.push(Move {
                from: slot,
                to: planned.to,
            });
        }
        Some(filled)
    }

    /// Resets the slots, and makes the later children of this thread start with a copy of the table.
    pub(super) fn disable_in_thread(self) {
        IS_REFUSED.set(true);
    }

    /// Returns what the child moves to where, after it has left the shared table.
    pub(super) fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// Returns the number above those of the slots and of the standard streams.
    pub(super) fn end(&self) -> RawFd {
        let slots = self.slots.iter().map(AsRawFd::as_raw_fd);
        slots.max().map_or(0, |last| last + 1).max(3)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let null = self.slots.first().map(AsRawFd::as_raw_fd);
        let reset = |filled: &Move| null.is_some_and(|null| replace(filled.from, null).is_ok());
        // A slot that keeps the end of a pipe would hide the hang-up of it. The reset fails if the limit of
        // descriptors has become lower than the slot: then all are closed, and the next spawn reserves others.
        if !self.moves.iter().all(reset) {
            self.slots.clear();
        }
    }
}

/// Reserves low numbers for the descriptors of children that
/// [inherit no others](crate::Command::inherit_descriptors).
///
/// Call it early in a program that opens many descriptors. The cost of a spawn depends on how high the
/// reserved numbers are, and without this call the first spawn reserves those that are free then. Further
/// calls do nothing.
///
/// Keeps eight descriptors of `/dev/null` open, which are close-on-exec. This process must not close them: see
/// the restrictions of [`inherit_descriptors`](crate::Command::inherit_descriptors).
///
/// ```
/// # use std::fs::File;
/// # use pidfd_spawn::Command;
/// pidfd_spawn::reserve_descriptors()?;
/// let files: Vec<_> = (0..500).map(|_| File::open("/dev/zero")).collect::<Result<_, _>>()?;
/// // Takes no longer with the files.
/// let status = Command::new("true").inherit_descriptors(false).status()?;
/// assert!(status.success());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// Fails if `/dev/null` cannot be opened, or if no descriptors are left (`RLIMIT_NOFILE`). A later spawn tries
/// again.
pub fn reserve_descriptors() -> io::Result<()> {
    // The thread that holds the lock spawns with reserved slots, or reserves them.
    if let Ok(mut slots) = SLOTS.try_lock() {
        reserve_in(&mut slots)?;
    }
    Ok(())
}

fn reserve_in(slots: &mut Vec<OwnedFd>) -> io::Result<()> {
    if slots.is_empty() {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        *slots = (0..COUNT)
            .map(|_| null.as_fd().try_clone_to_owned())
            .collect::<Result<_, _>>()?;
    }
    Ok(())
}

/// Makes the slot a duplicate of `source`, close-on-exec.
fn replace(slot: RawFd, source: RawFd) -> Result<(), Errno> {
    let arguments = [source.into(), slot.into(), libc::O_CLOEXEC.into()];
    // SAFETY: takes integers. The holder of the lock owns the slot.
    unsafe { call(libc::SYS_dup3, arguments) }?;
    Ok(())
}
