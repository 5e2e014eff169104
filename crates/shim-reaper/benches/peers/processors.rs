use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, meaning every one that it starts from then on, too.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// One processor for an observer that spins, and all others for what it observes. Without that
/// the observer would now and then take the processor from the reaper that it is waiting for.
pub(crate) struct Processors {
    all: CpuSet,
    observer: CpuSet,
    observed: CpuSet,
}

impl Processors {
    /// From here on the calling thread is one of the observed.
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
