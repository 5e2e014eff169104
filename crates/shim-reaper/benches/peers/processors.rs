//! CPU affinity and CPU time.

use std::fs;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

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

/// Returns how long the calling thread could run and waited for a CPU.
pub(crate) fn wait_for_cpu() -> Duration {
    let statistics = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let wait = statistics.split(' ').nth(1).unwrap();
    Duration::from_nanos(wait.parse().unwrap())
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).unwrap().into()
}

/// The CPU time that other processes use while the benchmark runs. On a busy machine they take the
/// CPU between an exit and its reaper.
pub(crate) struct ForeignCpu {
    start: Instant,
    all: Duration,
    own: Duration,
}

impl ForeignCpu {
    pub(crate) fn watch() -> Self {
        Self {
            start: Instant::now(),
            all: cpu_time_of_all(),
            own: cpu_time_of_this_process(),
        }
    }

    /// Returns the share of all CPUs that other processes used, from 0 to 1. It includes the time that a hypervisor
    /// gave to other machines.
    pub(crate) fn share(&self) -> f64 {
        let all = cpu_time_of_all() - self.all;
        let own = cpu_time_of_this_process() - self.own;
        let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN).unwrap().unwrap();
        let capacity = self.start.elapsed().as_secs_f64() * cpus as f64;
        all.saturating_sub(own).as_secs_f64() / capacity
    }
}

/// Returns the time in which any CPU was not idle, in steps of a hundredth of a second.
fn cpu_time_of_all() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map(|field| field.parse().unwrap()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5). The rest is part of user.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().map(|i| ticks[*i]).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs(busy) / per_second as u32
}

/// Returns the CPU time of this process and of the children that it has reaped.
fn cpu_time_of_this_process() -> Duration {
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .into_iter()
        .map(|who| getrusage(who).unwrap())
        .flat_map(|usage| [usage.user_time(), usage.system_time()])
        .map(|time| Duration::from_micros(time.num_microseconds().try_into().unwrap()))
        .sum()
}
