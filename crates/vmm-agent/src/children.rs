use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use pidfd_spawn::Child;
use vmm_protocol::Ending;

/// The children that executions have started, in a process with one thread that waits for all
/// children.
///
/// That thread is the main thread of a shim, or pid 1 of a guest. It reaps orphans too, so it waits
/// for any child, and stores each exit status here: it [reports](Self::report) a status before it reaps the
/// child, or [reaps](Self::reap) the child here.
#[derive(Debug)]
pub struct Children {
    exits: Mutex<Exits>,
    is_closed: AtomicBool,
    is_paused: AtomicBool,
    /// Readable when a child of an execution has been reaped.
    wake: EventFd,
}

/// The exit status of each child by its pid; `None` while the child runs.
type Exits = HashMap<u32, Option<ExitStatus>>;

/// Why a command is not started.
#[derive(Debug)]
pub(crate) enum NotSpawned {
    /// [`Children::close`] has been called.
    Closed,
    /// [`Children::pause`] has been called.
    Paused,
    Failed(Ending),
}

impl Children {
    /// Creates an empty set.
    ///
    /// # Errors
    ///
    /// The error of `eventfd(2)`, if no descriptor is free.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            exits: Mutex::default(),
            is_closed: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Stores the exit status of a child that the calling thread is about to reap. Returns false for a
    /// child that no execution has started.
    ///
    /// No signal is sent to the child after this has returned: once it is reaped, the kernel can use its pid
    /// again.
    pub fn report(&self, pid: u32, status: ExitStatus) -> bool {
        self.store(&mut self.exits(), pid, status)
    }

    /// Calls the function, which reaps any child that has ended, and stores the exit status. No signal is
    /// sent to a child meanwhile.
    ///
    /// # Errors
    ///
    /// The error of the function.
    pub fn reap<E>(
        &self,
        wait: impl FnOnce() -> Result<Option<(u32, ExitStatus)>, E>,
    ) -> Result<Option<u32>, E> {
        let mut exits = self.exits();
        let reaped = wait()?;
        if let Some((pid, status)) = reaped {
            self.store(&mut exits, pid, status);
        }
        Ok(reaped.map(|(pid, _)| pid))
    }

    fn store(&self, exits: &mut Exits, pid: u32, status: ExitStatus) -> bool {
        let Some(exit) = exits.get_mut(&pid) else {
            return false;
        };
        *exit = Some(status);
        let _ = self.wake.write(1);
        true
    }

    /// Lets the server return as soon as all executions have ended and all output is sent.
    ///
    /// No execution starts after this has returned.
    pub fn close(&self) {
        let exits = self.exits();
        self.is_closed.store(true, Ordering::Release);
        drop(exits);
        let _ = self.wake.write(1);
    }

    /// Returns whether [`close`](Self::close) has been called.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Calls the function, which freezes all children, while no execution starts: a child that is frozen
    /// before it executes its program would block the thread that starts it. If the function succeeds, no
    /// execution starts until [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// The error of the function.
    pub fn pause<E>(&self, freeze: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let _exits = self.exits();
        freeze()?;
        self.is_paused.store(true, Ordering::Release);
        Ok(())
    }

    /// Calls the function, which lets all children continue, if they are paused.
    pub fn resume(&self, thaw: impl FnOnce()) {
        let _exits = self.exits();
        if self.is_paused.swap(false, Ordering::AcqRel) {
            thaw();
        }
    }

    /// Calls the function, which spawns a child. No exit can be reported before the child is known.
    pub(crate) fn spawn(
        &self,
        spawn: impl FnOnce() -> Result<Child, Ending>,
    ) -> Result<Child, NotSpawned> {
        let mut exits = self.exits();
        if self.is_closed() {
            return Err(NotSpawned::Closed);
        }
        if self.is_paused.load(Ordering::Acquire) {
            return Err(NotSpawned::Paused);
        }
        let child = spawn().map_err(NotSpawned::Failed)?;
        exits.insert(child.id(), None);
        Ok(child)
    }

    /// Calls the function if the child has not been reaped: its pid cannot be reused meanwhile.
    pub(crate) fn if_running(&self, pid: u32, action: impl FnOnce()) {
        if self.exits().get(&pid) == Some(&None) {
            action();
        }
    }

    /// Returns the exit status of a child once, if it has been reaped.
    pub(crate) fn take(&self, pid: u32) -> Option<ExitStatus> {
        let mut exits = self.exits();
        let status = exits.get(&pid).copied().flatten()?;
        exits.remove(&pid);
        Some(status)
    }

    /// Returns the descriptor that is readable when [`take`](Self::take) can return a new status.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes the descriptor unreadable until the next exit.
    pub(crate) fn clear_wake(&self) {
        let _ = self.wake.read();
    }

    fn exits(&self) -> MutexGuard<'_, Exits> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
