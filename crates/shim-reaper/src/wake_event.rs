use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::Wake;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes a thread that polls a descriptor.
#[derive(Debug)]
pub(crate) struct WakeEvent(EventFd);

impl WakeEvent {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_flags(flags)?))
    }

    /// Makes the descriptor unreadable until the next wake.
    pub(crate) fn clear(&self) {
        // Fails only if it is not readable.
        let _ = self.0.read();
    }
}

impl AsFd for WakeEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wake for WakeEvent {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Fails only if the counter is full; the descriptor is readable then.
        let _ = self.0.write(1);
    }
}
