//! Processor time.

use std::time::Duration;

use nix::libc;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Of all threads but the calling one, in seconds. The two clocks are not read at the same
/// instant, so that it may seem to go back by less than a microsecond.
pub(crate) fn others() -> f64 {
    let process = read(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    process.as_secs_f64() - read(ClockId::CLOCK_THREAD_CPUTIME_ID).as_secs_f64()
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
