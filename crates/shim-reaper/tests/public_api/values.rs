//! Exits, statistics, reports and signals.

use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use shim_reaper::{
    InvalidSignal, ReapedBy, ReaperStats, ResourceUsage, ShimExit, ShutdownReport, Signal,
    StopReport,
};

fn exits_have_a_status_and_name_the_wait(exit: ShimExit) -> Option<ResourceUsage> {
    let _: u32 = exit.pid;
    let _: Option<ExitStatus> = exit.status;
    let _: Option<i32> = exit.code();
    let _: Option<i32> = exit.signal();
    let _: bool = exit.success();
    let _: Option<i32> = exit.shell_code();
    match exit.reaped_by {
        ReapedBy::Reaper
        | ReapedBy::Owner
        | ReapedBy::ForeignWait
        | ReapedBy::Observed
        | ReapedBy::Unknown => exit.rusage,
        _ => unreachable!("the list has all variants"),
    }
}

fn usage_has_the_fields_of_getrusage(usage: ResourceUsage) -> ([Duration; 2], [u64; 7]) {
    (
        [usage.user_time, usage.system_time],
        [
            usage.max_rss,
            usage.minor_faults,
            usage.major_faults,
            usage.blocks_read,
            usage.blocks_written,
            usage.voluntary_switches,
            usage.involuntary_switches,
        ],
    )
}

fn stats_are_numbers_and_times(stats: ReaperStats) -> ([u64; 11], Option<SystemTime>, bool) {
    (
        [
            stats.registered,
            stats.reaped_total,
            stats.vanished_total,
            stats.owner_reaped_total,
            stats.observed_total,
            stats.foreign_waits_total,
            stats.unknown_total,
            stats.orphans_reaped_total,
            stats.sweeps_completed,
            stats.respawns_total,
            stats.without_pidfd,
        ],
        stats.last_sweep_at,
        stats.worker_alive,
    )
}

fn reports_list_pids(shutdown: ShutdownReport, stop: StopReport) -> ([u64; 3], [Vec<u32>; 5]) {
    (
        [shutdown.drained, shutdown.stopped, stop.stopped],
        [
            shutdown.still_running,
            shutdown.held_by_tracer,
            shutdown.killed,
            stop.killed,
            stop.still_running,
        ],
    )
}

fn signals_convert(number: i32) -> Result<(i32, i32), InvalidSignal> {
    let signal = Signal::try_from(number)?;
    let _: Option<Signal> = Signal::real_time(0);
    Ok((signal.as_raw(), signal.into()))
}

/// The signals of every architecture; some have `SIGSTKFLT` too.
const SIGNALS: [Signal; 30] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGKILL,
    Signal::SIGUSR1,
    Signal::SIGSEGV,
    Signal::SIGUSR2,
    Signal::SIGPIPE,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGSTOP,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGURG,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGWINCH,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSYS,
];

#[cfg(feature = "serde")]
#[test]
fn values_can_be_serialized() {
    fn is_serialized<T: serde::Serialize + serde::de::DeserializeOwned>() {}
    is_serialized::<ShimExit>();
    is_serialized::<ReapedBy>();
    is_serialized::<ResourceUsage>();
    is_serialized::<ReaperStats>();
    is_serialized::<ShutdownReport>();
}
