//! Processor time.

use std::time::Duration;

use nix::libc;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Of all threads but the calling one.
pub(crate) fn others() -> Duration {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID) - read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

pub(crate) fn of_thread(id: Pid) -> Duration {
    // How Linux encodes "scheduler time of the thread", for a thread whose `pthread_t` is unknown.
    const SCHEDULED: libc::clockid_t = 2;
    const PER_THREAD: libc::clockid_t = 4;
    read(ClockId::from_raw(
        (!id.as_raw() << 3) | SCHEDULED | PER_THREAD,
    ))
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).unwrap().into()
}
