//! Where io_uring is not available, or fails, the dedicated thread uses its epoll.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::io_uring::{rings, spawn_sleepers, start};
use common::log_counter::LogCounter;
use common::own_process::in_own_process;
use common::seccomp::{Argument, Argument::Equals, refuse};
use common::{eventually_blocking, is_gone, kill, sleeper};
use futures::executor::block_on;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal::SIGKILL;
use shim_reaper::{Metrics, ReaperCounter, ReaperGauge, ShimReaper};

/// The number of entries with which the reaper creates its ring.
const ENTRIES: Argument = Equals(128);

fn assert_falls_back(test: &str, call: i64, index: u32, argument: Argument, errno: Errno) {
    in_own_process(test, || {
        let log = LogCounter::install();
        refuse(call, index, argument, errno);
        let reaper = ShimReaper::builder()
            .io_uring(true)
            .sweep_interval(Duration::from_secs(3600))
            .start_dedicated()
            .unwrap();
        // With requests in the ring, it would also log that it cannot cancel them.
        eventually_blocking("the reaper falls back", || log.warnings() > 0);
        let shims: Vec<_> = (0..20).map(|_| reaper.spawn(sleeper()).unwrap()).collect();
        for shim in &shims {
            kill(shim.id(), SIGKILL);
            let exit = block_on(shim.wait()).unwrap();
            assert_eq!(exit.signal(), Some(9));
            assert!(exit.rusage.is_some(), "the reaper has called waitid");
        }
        assert_eq!(rings(), 0);
        assert_eq!(log.warnings(), 1, "the reaper logs it once");
        assert!(reaper.shutdown_sync().still_running.is_empty());
    });
}

macro_rules! fallbacks {
    ($($(#[$doc:meta])* $name:ident: $call:ident, $index:literal, $argument:expr, $errno:ident;)+) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            assert_falls_back(stringify!($name), libc::$call, $index, $argument, Errno::$errno);
        }
    )+};
}

fallbacks! {
    /// The kernel has none.
    reaps_without_io_uring: SYS_io_uring_setup, 0, ENTRIES, ENOSYS;
    /// `io_uring_disabled`, or a seccomp filter.
    reaps_where_io_uring_is_forbidden: SYS_io_uring_setup, 0, ENTRIES, EPERM;
    /// Before Linux 6.1.
    reaps_where_the_kernel_runs_requests_at_any_time: SYS_io_uring_setup, 0, ENTRIES, EINVAL;
    reaps_without_memory_for_a_ring: SYS_io_uring_setup, 0, ENTRIES, ENOMEM;
    reaps_without_a_descriptor_for_a_ring: SYS_io_uring_setup, 0, ENTRIES, EMFILE;
    /// The operations of the kernel are not known: `IORING_REGISTER_PROBE`.
    reaps_where_io_uring_may_not_wait_for_processes: SYS_io_uring_register, 1, Equals(8), EINVAL;
    reaps_where_the_ring_cannot_be_entered: SYS_io_uring_enter, 2, Equals(1), EBADR;
}

#[test]
fn reaps_without_lockable_memory() {
    in_own_process("reaps_without_lockable_memory", || {
        setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
        let reaper = ShimReaper::builder()
            .io_uring(true)
            .start_dedicated()
            .unwrap();
        let shims = spawn_sleepers(&reaper, 20);
        for shim in shims {
            kill(shim.id(), SIGKILL);
            assert_eq!(block_on(shim).unwrap().signal(), Some(9));
        }
    });
}

/// Forbids the thread of the reaper to enter the ring when it has reaped a shim after `armed` was set.
struct Forbid {
    armed: &'static AtomicBool,
}

impl Metrics for Forbid {
    fn increment(&self, counter: ReaperCounter, _: u64) {
        if counter == ReaperCounter::Reaped && self.armed.swap(false, Relaxed) {
            for argument in [0, 1] {
                refuse(libc::SYS_io_uring_enter, 2, Equals(argument), Errno::EPERM);
            }
        }
    }

    fn adjust(&self, _: ReaperGauge, _: i64) {}
}

#[test]
fn shims_are_reaped_after_a_ring_with_their_requests_has_failed() {
    in_own_process(
        "shims_are_reaped_after_a_ring_with_their_requests_has_failed",
        || {
            static ARMED: AtomicBool = AtomicBool::new(false);
            let builder = ShimReaper::builder().metrics(Forbid { armed: &ARMED });
            let Some(reaper) = start(builder) else { return };
            let shims = spawn_sleepers(&reaper, 20);
            ARMED.store(true, Relaxed);
            kill(shims[0].id(), SIGKILL);
            eventually_blocking("the ring is closed", || rings() == 0);
            for shim in shims {
                let _ = shim.start_kill();
                let exit = block_on(shim.wait()).unwrap();
                assert_eq!(exit.signal(), Some(9));
                eventually_blocking("the shim is reaped", || is_gone(shim.id()));
            }
            assert_eq!(reaper.stats().foreign_waits_total, 0);
        },
    );
}
