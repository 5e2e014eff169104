use std::os::fd::OwnedFd;

/// The runtime's end of a shim's watchdog: as long as it is held, the shim may live.
///
/// Dropping it, or the death of the process that holds it, makes the pipe hang up; the shim then
/// ends its payload, gracefully and in the end by force, and itself. The descriptor is
/// close-on-exec from birth, so that no other child of the process keeps the pipe open. A child that
/// is forked without an exec does, but not beyond the end of the process: the shim watches that, too.
#[derive(Debug)]
pub struct Keepalive(#[expect(dead_code, reason = "its drop is what counts")] OwnedFd);

impl Keepalive {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self(pipe)
    }
}
