use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, sync};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{WaitOptions, wait};
use vmm_agent::Children;
use vmm_protocol::poll::wait_until;

use crate::backend::Shutdown;
use crate::error::AgentError;

/// How long the agent waits until the host has read the last output.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a process may take to die of SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns whether this process is pid 1 of its namespace: all other processes in it are its
/// descendants.
pub(crate) fn is_init() -> bool {
    Pid::this() == Pid::from_raw(1)
}

/// Waits for all children, and ends them.
pub(crate) struct Init {
    signals: SignalFd,
    children: Arc<Children>,
    shutdown: Arc<Shutdown>,
}

impl Init {
    /// Blocks the signals that the agent handles. Call it before any thread is started.
    pub(crate) fn new(
        children: Arc<Children>,
        shutdown: Arc<Shutdown>,
    ) -> Result<Self, AgentError> {
        let signals = [
            Signal::SIGCHLD,
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGUSR2,
        ];
        let mask = SigSet::from_iter(signals);
        let signals = mask
            .thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map_err(|error| AgentError::system("handle signals")(error.into()))?;
        Ok(Self {
            signals,
            children,
            shutdown,
        })
    }

    /// Reaps children until a signal other than SIGCHLD requests the end.
    pub(crate) fn run(&self) {
        loop {
            self.reap();
            if self.wait_for_signal(None) {
                return;
            }
        }
    }

    /// Ends all processes: with SIGTERM, and with SIGKILL after the grace period. The host can shorten
    /// the period while it runs, with another request.
    pub(crate) fn end_processes(&self) {
        // With -1, `kill` signals all processes of the machine, unless this is pid 1 of a namespace.
        // Otherwise the commands die with this process.
        if is_init() {
            let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
            // A stopped process handles SIGTERM only when it continues.
            let _ = kill(Pid::from_raw(-1), Signal::SIGCONT);
            if !self.reap_until_none_is_left(|| self.shutdown.grace()) {
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
                self.reap_until_none_is_left(|| KILL_TIMEOUT);
            }
        }
        self.children.close();
    }

    fn reap_until_none_is_left(&self, timeout: impl Fn() -> Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.reap() {
                return true;
            }
            // A timeout that no `Instant` can hold is never over.
            let deadline = start.checked_add(timeout());
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return false;
            }
            self.wait_for_signal(deadline);
        }
    }

    /// Reaps all children that have ended. Returns true if no child is left.
    fn reap(&self) -> bool {
        loop {
            let reaped = self.children.reap(|| {
                let reaped = wait(WaitOptions::NOHANG)?;
                Ok(reaped.map(|(pid, status)| {
                    let pid = pid.as_raw_pid().cast_unsigned();
                    (pid, ExitStatus::from_raw(status.as_raw()))
                }))
            });
            match reaped {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return true,
            }
        }
    }

    /// Waits for signals until the deadline. Returns true if one of them requests the end.
    fn wait_for_signal(&self, deadline: Option<Instant>) -> bool {
        let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
        let _ = wait_until(&mut fds, deadline);
        let mut is_end = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            is_end |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        is_end
    }
}

/// Writes all data to the disks.
pub(crate) fn write_disks() {
    sync();
}

/// Detaches the kernel from its serial consoles (Linux 5.10): its last message, of the power-off, would
/// follow the output of the workload.
fn detach_consoles() {
    let consoles = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    for console in consoles.split_whitespace() {
        let _ = fs::write(format!("/sys/class/tty/{console}/console"), "N");
    }
}

/// Unmounts the disks and powers the guest off. Only for the pid 1 of a guest: it unmounts the file
/// systems of its mount namespace.
pub(crate) fn power_off() {
    detach_consoles();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // Mounted last, unmounted first. What is still in use stays, and has been written.
    for target in targets.collect::<Vec<_>>().into_iter().rev() {
        let _ = umount(target);
    }
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(none, "/", none, flags, none);
    sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
}
