//! CPU affinity and CPU time.

use std::time::Duration;

use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The calling thread, and every thread that it starts later.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// One CPU for an observer that spins, and the other CPUs for the observed peers. Otherwise the
/// observer would sometimes take the CPU from the reaper that it observes.
pub(crate) struct Processors {
    all: CpuSet,
    observer: CpuSet,
    observed: CpuSet,
}

impl Processors {
    /// Divides the CPUs, and makes the calling thread one of the observed.
    pub(crate) fn divide() -> Self {
        let all = sched_getaffinity(THIS_THREAD).unwrap();
        let mut observer = CpuSet::new();
        let mut observed = all;
        let mut usable = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap());
        let last = usable.next_back().unwrap();
        observer.set(last).unwrap();
        observed.unset(last).unwrap();
        if observed == CpuSet::new() {
            observed = all;
        }
        let processors = Self {
            all,
            observer,
            observed,
        };
        processors.be_observed();
        processors
    }

    pub(crate) fn be_observer(&self) {
        sched_setaffinity(THIS_THREAD, &self.observer).unwrap();
    }

    pub(crate) fn be_observed(&self) {
        sched_setaffinity(THIS_THREAD, &self.observed).unwrap();
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        sched_setaffinity(THIS_THREAD, &self.all).unwrap();
    }
}

/// Returns the CPU time of all threads but the calling one, in seconds. It reads two clocks one
/// after the other, so the result may decrease by less than a microsecond.
pub(crate) fn cpu_time_of_others() -> f64 {
    let process = read(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    process.as_secs_f64() - read(ClockId::CLOCK_THREAD_CPUTIME_ID).as_secs_f64()
}

pub(crate) fn cpu_time_of(thread: Pid) -> Duration {
    // Linux's encoding of the CPU clock of a thread whose `pthread_t` is unknown.
    const SCHEDULED: libc::clockid_t = 2;
    const PER_THREAD: libc::clockid_t = 4;
    read(ClockId::from_raw(
        (!thread.as_raw() << 3) | SCHEDULED | PER_THREAD,
    ))
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).unwrap().into()
}
