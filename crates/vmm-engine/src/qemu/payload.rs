use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::libc::SIGTERM;
use vmm_agent::RequestError;
use vmm_protocol::GuestEvent;
use vmm_protocol::frames::RequestErrorKind;

use super::agent;
use super::qmp::{Monitor, Shutdown};
use crate::process::ProcessPayload;
use crate::{ControlChannel, EngineError, Helper, Pause, Payload, PayloadExit};

/// How long to wait for the last events of a QEMU that has exited.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// A QEMU that runs a guest.
#[derive(Debug)]
pub(super) struct QemuPayload {
    process: Arc<ProcessPayload>,
    monitor: Arc<Monitor>,
    /// The serial port of the agent, if the guest has one.
    agent: Option<UnixStream>,
    /// Whether the agent has reported that it is ready. Until then, the start reads the port.
    is_ready: AtomicBool,
    is_stopping: AtomicBool,
    /// The servers of the shares, until the shim has started them.
    helpers: Mutex<Vec<Helper>>,
}

impl QemuPayload {
    pub(super) fn new(
        process: ProcessPayload,
        monitor: Arc<Monitor>,
        agent: Option<UnixStream>,
        helpers: Vec<Helper>,
    ) -> Self {
        Self {
            process: Arc::new(process),
            monitor,
            agent,
            is_ready: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            helpers: Mutex::new(helpers),
        }
    }

    /// Starts a thread that presses the power button if the agent does not power the guest off, and
    /// ends QEMU if that does not help either, each after the timeout.
    fn start_stop_timer(&self, timeout: Duration) -> io::Result<()> {
        let (process, monitor) = (Arc::clone(&self.process), Arc::clone(&self.monitor));
        let timer = thread::Builder::new().name("shim-stop".to_owned());
        timer.spawn(move || {
            if monitor.wait_closed(timeout).is_none() {
                monitor.power_down();
            }
            if monitor.wait_closed(timeout).is_none() {
                process.terminate();
            }
        })?;
        Ok(())
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

    fn wait_until_ready(&self) -> Result<(), EngineError> {
        if !self.monitor.wait_running() {
            return Err(EngineError::EndedEarly);
        }
        if let Some(port) = &self.agent {
            agent::wait_ready(port)?;
        }
        self.is_ready.store(true, Ordering::Release);
        Ok(())
    }

    fn control_channel(&self) -> Option<&dyn ControlChannel> {
        self.agent.as_ref().map(|_| self as _)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(&*self.monitor)
    }

    fn stop(&self, grace: Duration) {
        self.monitor.let_guest_run();
        match &self.agent {
            Some(port) => agent::request_shutdown(port, grace / 4),
            None => self.monitor.power_down(),
        }
        let is_first = !self.is_stopping.swap(true, Ordering::Relaxed);
        if is_first && self.start_stop_timer(grace * 3 / 8).is_err() {
            self.process.terminate();
        }
    }

    fn kill(&self) {
        self.process.kill();
    }

    fn wait(&self) -> io::Result<PayloadExit> {
        let exit = self.process.wait()?;
        let shutdown = self.monitor.wait_closed(EVENTS_TIMEOUT).unwrap_or_default();
        Ok(exit_of_guest(exit, shutdown))
    }
}

impl ControlChannel for QemuPayload {
    fn open(&self) -> Result<OwnedFd, RequestError> {
        let Some(port) = &self.agent else {
            return Err(RequestError::unsupported("exec"));
        };
        let failed = |message| RequestError {
            kind: RequestErrorKind::Failed,
            message,
        };
        if !self.is_ready.load(Ordering::Acquire) {
            return Err(failed("the guest is not ready yet".to_owned()));
        }
        let port = port.try_clone().map_err(|error| {
            failed(format!("cannot open the serial port of the agent: {error}"))
        })?;
        Ok(port.into())
    }
}

/// Returns how a guest ended, from how QEMU ended and what its events reported.
fn exit_of_guest(exit: PayloadExit, shutdown: Shutdown) -> PayloadExit {
    match (exit, shutdown) {
        (_, Shutdown::Panicked) => PayloadExit::Guest(GuestEvent::Panicked),
        (PayloadExit::Code(0), Shutdown::PoweredOff) => PayloadExit::Guest(GuestEvent::PoweredOff),
        (PayloadExit::Code(0), Shutdown::Reset) => PayloadExit::Guest(GuestEvent::Reset),
        (PayloadExit::Code(0), Shutdown::HostSignal) => PayloadExit::Signal(SIGTERM),
        (exit, _) => exit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_whose_qemu_failed_did_not_power_off() {
        let killed = PayloadExit::Signal(9);
        assert_eq!(exit_of_guest(killed, Shutdown::PoweredOff), killed);
        let failed = PayloadExit::Code(1);
        assert_eq!(exit_of_guest(failed, Shutdown::PoweredOff), failed);
        let panicked = PayloadExit::Guest(GuestEvent::Panicked);
        assert_eq!(exit_of_guest(killed, Shutdown::Panicked), panicked);
    }
}
