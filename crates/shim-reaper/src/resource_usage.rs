use std::time::Duration;

use nix::libc;

/// What a shim consumed, with the descendants that it waited for: `getrusage(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResourceUsage {
    /// CPU time in user mode.
    pub user_time: Duration,
    /// CPU time in the kernel.
    pub system_time: Duration,
    /// Peak resident memory, in bytes, of the largest process among them.
    pub max_rss: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// File system reads, in blocks of 512 bytes.
    pub blocks_read: u64,
    /// File system writes, in blocks of 512 bytes.
    pub blocks_written: u64,
    /// Times it gave up the CPU to wait.
    pub voluntary_switches: u64,
    /// Times the scheduler took the CPU away.
    pub involuntary_switches: u64,
}

impl ResourceUsage {
    pub(crate) fn from_raw(raw: &libc::rusage) -> Self {
        let count = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
        let time = |value: libc::timeval| {
            let micros = u64::try_from(value.tv_usec).unwrap_or(0);
            Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or(0))
                + Duration::from_micros(micros)
        };
        Self {
            user_time: time(raw.ru_utime),
            system_time: time(raw.ru_stime),
            max_rss: count(raw.ru_maxrss).saturating_mul(1024),
            minor_faults: count(raw.ru_minflt),
            major_faults: count(raw.ru_majflt),
            blocks_read: count(raw.ru_inblock),
            blocks_written: count(raw.ru_oublock),
            voluntary_switches: count(raw.ru_nvcsw),
            involuntary_switches: count(raw.ru_nivcsw),
        }
    }
}
