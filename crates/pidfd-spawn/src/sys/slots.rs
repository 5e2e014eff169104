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

/// Reserved by the first spawn that needs them, when low numbers are likely to be free. `/dev/null` when no
/// spawn uses them.
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
        if slots.is_empty() {
            *slots = reserve().ok()?;
        }
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

fn reserve() -> io::Result<Vec<OwnedFd>> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    (0..COUNT)
        .map(|_| null.as_fd().try_clone_to_owned())
        .collect()
}

/// Makes the slot a duplicate of `source`, close-on-exec.
fn replace(slot: RawFd, source: RawFd) -> Result<(), Errno> {
    let arguments = [source.into(), slot.into(), libc::O_CLOEXEC.into()];
    // SAFETY: takes integers. The holder of the lock owns the slot.
    unsafe { call(libc::SYS_dup3, arguments) }?;
    Ok(())
}
