use std::io;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::libc::SIGTERM;
use vmm_protocol::{BootTimes, GuestEvent, UnappliedRule};

use super::agent::Agent;
use super::network::Attachment;
use super::power_off::PowerOff;
use super::qmp::{Monitor, Shutdown};
use crate::process::ProcessPayload;
use crate::{Call, ControlChannel, EngineError, Helper, Pause, Payload, PayloadExit};

/// How long to wait for what a QEMU that has exited had sent last.
const LAST_MESSAGES_TIMEOUT: Duration = Duration::from_secs(1);

/// A QEMU that runs a guest.
#[derive(Debug)]
pub(super) struct QemuPayload {
    process: Arc<ProcessPayload>,
    monitor: Arc<Monitor>,
    /// The agent of the guest, if it has one.
    agent: Option<Agent>,
    power_off: Arc<PowerOff>,
    /// The servers of the shares, until the shim has started them.
    helpers: Mutex<Vec<Helper>>,
    unapplied_rules: Vec<UnappliedRule>,
    /// The network of the guest, until QEMU has ended.
    attachment: Mutex<Option<Attachment>>,
}

impl QemuPayload {
    pub(super) fn new(
        process: Arc<ProcessPayload>,
        monitor: Arc<Monitor>,
        agent: Option<Agent>,
        power_off: Arc<PowerOff>,
        helpers: Vec<Helper>,
        unapplied_rules: Vec<UnappliedRule>,
    ) -> Self {
        Self {
            process,
            monitor,
            agent,
            power_off,
            helpers: Mutex::new(helpers),
            unapplied_rules,
            attachment: Mutex::default(),
        }
    }

    /// Keeps the attachment to a network until QEMU has ended.
    pub(super) fn in_network(self, attachment: Option<Attachment>) -> Self {
        let attachment = Mutex::new(attachment);
        Self { attachment, ..self }
    }
}

impl Payload for QemuPayload {
    fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    fn helpers(&self) -> Vec<Helper> {
        let mut helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut helpers)
    }

    fn unapplied_rules(&self) -> Vec<UnappliedRule> {
        self.unapplied_rules.clone()
    }

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        if !self.monitor.wait_running() {
            return Err(EngineError::EndedEarly);
        }
        self.agent.as_ref().map_or(Ok(()), Agent::wait_ready)
    }

    fn boot_times(&self) -> Option<BootTimes> {
        self.agent.as_ref()?.boot_times()
    }

    fn control_channel(&self) -> Option<&dyn ControlChannel> {
        self.agent.as_ref().map(|agent| agent as _)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(&*self.monitor)
    }

    fn calls(&self) -> Option<&dyn Call> {
        Some(&*self.monitor)
    }

    fn stop(&self, grace: Duration) {
        self.monitor.let_guest_run();
        match &self.agent {
            Some(agent) => {
                agent.request_shutdown(PowerOff::grace_of_commands(grace));
                self.power_off.begin_by_agent(grace);
            }
            None => self.power_off.begin(grace),
        }
    }

    fn kill(&self) {
        self.process.kill();
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        let mut workload = None;
        let exit = self.process.wait_after(|| {
            let agent = self.agent.as_ref();
            workload = agent.and_then(|agent| agent.finish(LAST_MESSAGES_TIMEOUT));
        })?;
        let mut attachment = self
            .attachment
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *attachment = None;
        self.monitor.wait_closed(LAST_MESSAGES_TIMEOUT);
        let guest = exit_of_guest(exit, self.monitor.shutdown());
        Ok(exit_of_workload(workload, guest))
    }
}

/// Returns how a guest ended, from how QEMU ended and what its events reported.
fn exit_of_guest(exit: PayloadExit, shutdown: Shutdown) -> PayloadExit {
    match (exit, shutdown) {
        (_, Shutdown::Panicked) => PayloadExit::Guest(GuestEvent::Panicked),
        (PayloadExit::Code(0), Shutdown::PoweredOff) => PayloadExit::Guest(GuestEvent::PoweredOff),
        (PayloadExit::Code(0), Shutdown::Reset) => PayloadExit::Guest(GuestEvent::Reset),
        (PayloadExit::Code(0), Shutdown::HostSignal) => PayloadExit::Signal(SIGTERM),
        (PayloadExit::Code(0), Shutdown::Unknown) => PayloadExit::Unknown,
        (exit, _) => exit,
    }
}

/// Returns how a box ended, from how its workload ended, if the agent has reported that, and how the
/// guest ended. A success needs a guest that has written its data and powered off.
fn exit_of_workload(workload: Option<PayloadExit>, guest: PayloadExit) -> PayloadExit {
    match (workload, guest) {
        (None, guest) => guest,
        (Some(PayloadExit::Code(0)), guest)
            if guest != PayloadExit::Guest(GuestEvent::PoweredOff) =>
        {
            guest
        }
        (Some(workload), _) => workload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POWERED_OFF: PayloadExit = PayloadExit::Guest(GuestEvent::PoweredOff);
    const PANICKED: PayloadExit = PayloadExit::Guest(GuestEvent::Panicked);

    #[test]
    fn a_guest_whose_qemu_failed_did_not_power_off() {
        let killed = PayloadExit::Signal(9);
        assert_eq!(exit_of_guest(killed, Shutdown::PoweredOff), killed);
        let failed = PayloadExit::Code(1);
        assert_eq!(exit_of_guest(failed, Shutdown::PoweredOff), failed);
        assert_eq!(exit_of_guest(killed, Shutdown::Panicked), PANICKED);
    }

    #[test]
    fn a_qemu_that_exits_without_a_reason_is_not_a_success() {
        let exit = exit_of_guest(PayloadExit::Code(0), Shutdown::Unknown);
        assert_eq!(exit, PayloadExit::Unknown);
    }

    #[test]
    fn the_exit_of_the_workload_counts_before_that_of_the_guest() {
        let failed = PayloadExit::Code(42);
        for guest in [POWERED_OFF, PANICKED, PayloadExit::Signal(9)] {
            assert_eq!(exit_of_workload(Some(failed), guest), failed);
            assert_eq!(exit_of_workload(None, guest), guest);
        }
        let succeeded = PayloadExit::Code(0);
        assert_eq!(exit_of_workload(Some(succeeded), POWERED_OFF), succeeded);
    }

    #[test]
    fn a_workload_whose_guest_did_not_power_off_is_not_a_success() {
        let succeeded = Some(PayloadExit::Code(0));
        for guest in [PANICKED, PayloadExit::Signal(9), PayloadExit::Unknown] {
            assert_eq!(exit_of_workload(succeeded, guest), guest);
        }
    }
}
