use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::qmp::Monitor;
use crate::Payload;
use crate::process::ProcessPayload;

/// Ends a QEMU within a grace period: with the power button of the guest, then with SIGTERM, then
/// with SIGKILL.
///
/// | share of the grace period | what happens |
/// |---|---|
/// | 0 | the agent ends all commands, if there is one |
/// | 4/8 | the agent kills the commands that still run |
/// | 5/8, or 0 without an agent | the power button is pressed |
/// | 6/8 | QEMU gets SIGTERM |
/// | 8/8 | QEMU is killed |
///
/// A guest whose workload has ended by itself has [`NATURAL_END_GRACE`] to write its data and power off.
#[derive(Debug)]
pub(super) struct PowerOff {
    process: Arc<ProcessPayload>,
    monitor: Arc<Monitor>,
    /// Whether the end was requested.
    is_requested: AtomicBool,
}

/// The grace period of a guest that ends by itself: enough to write gigabytes to a slow disk. Only a guest that
/// hangs needs all of it.
pub(super) const NATURAL_END_GRACE: Duration = Duration::from_secs(600);

impl PowerOff {
    pub(super) fn new(process: Arc<ProcessPayload>, monitor: Arc<Monitor>) -> Arc<Self> {
        Arc::new(Self {
            process,
            monitor,
            is_requested: AtomicBool::new(false),
        })
    }

    /// Returns how long the commands in the guest may take to end.
    pub(super) fn grace_of_commands(grace: Duration) -> Duration {
        grace * 4 / 8
    }

    /// Ends QEMU on request. Does not block.
    pub(super) fn begin(self: &Arc<Self>, grace: Duration) {
        if !self.is_requested.swap(true, Ordering::Relaxed) {
            self.begin_at(Duration::ZERO, grace);
        }
    }

    /// Ends QEMU on request if the agent, which has been asked to, does not. Does not block.
    pub(super) fn begin_by_agent(self: &Arc<Self>, grace: Duration) {
        if !self.is_requested.swap(true, Ordering::Relaxed) {
            self.begin_at(grace * 5 / 8, grace);
        }
    }

    /// Ends QEMU if the agent does not, which shuts the guest down because the workload has ended. Does not
    /// block. A later request has its own, shorter grace period.
    pub(super) fn begin_at_natural_end(self: &Arc<Self>) {
        if !self.is_requested.load(Ordering::Relaxed) {
            self.begin_at(NATURAL_END_GRACE * 5 / 8, NATURAL_END_GRACE);
        }
    }

    /// Starts the thread that presses the power button after a part of the grace period.
    fn begin_at(self: &Arc<Self>, button: Duration, grace: Duration) {
        let power_off = Arc::clone(self);
        let thread = thread::Builder::new().name("shim-power-off".to_owned());
        let started: io::Result<_> = thread.spawn(move || power_off.run(button, grace));
        if started.is_err() {
            self.process.terminate();
        }
    }

    fn run(&self, button: Duration, grace: Duration) {
        // A QEMU that has closed its monitor can still run.
        if self.process.wait_exited(button) {
            return;
        }
        self.monitor.power_down();
        if self.process.wait_exited(grace * 6 / 8 - button) {
            return;
        }
        self.process.terminate();
        if !self.process.wait_exited(grace * 2 / 8) {
            self.process.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use vmm_protocol::{InstanceSpec, PayloadSpec};

    use super::*;
    use crate::process;

    #[test]
    fn a_stop_after_the_natural_end_has_its_own_grace_period() {
        let dir = tempfile::tempdir().unwrap();
        let spec = InstanceSpec::new("b1", PayloadSpec::command(["sleep", "1000"]));
        let process = Arc::new(process::spawn(&spec, dir.path(), |_, _| {}).unwrap());
        let (here, _qemu) = UnixStream::pair().unwrap();
        let power_off = PowerOff::new(Arc::clone(&process), Monitor::start(here).unwrap());
        power_off.begin_at_natural_end();
        assert!(!process.wait_exited(Duration::from_millis(100)));
        power_off.begin_by_agent(Duration::from_millis(200));
        assert!(process.wait_exited(Duration::from_secs(60)));
    }

    #[test]
    fn a_qemu_that_closes_its_monitor_and_stays_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        // The process ignores SIGTERM in one case.
        for script in ["exec sleep 1000", "trap '' TERM; exec sleep 1000"] {
            let spec = InstanceSpec::new("b1", PayloadSpec::command(["sh", "-c", script]));
            let process = Arc::new(process::spawn(&spec, dir.path(), |_, _| {}).unwrap());
            let (here, qemu) = UnixStream::pair().unwrap();
            drop(qemu);
            let monitor = Monitor::start(here).unwrap();
            assert!(monitor.wait_closed(Duration::from_secs(60)));
            assert!(!process.wait_exited(Duration::ZERO));
            PowerOff::new(Arc::clone(&process), monitor).begin(Duration::from_millis(200));
            assert!(process.wait_exited(Duration::from_secs(60)));
        }
    }
}
