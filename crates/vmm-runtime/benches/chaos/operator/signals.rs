//! Signals to the processes of a box, which the runtime does not know of.

use std::time::Duration;

use shim_reaper::{Pidfd, Signal};
use tokio::time::sleep;

use super::Operator;
use crate::leftovers;
use crate::oracle::Run;
use crate::server::{Reply, View};

const SIGNALS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGUSR1, Signal::SIGALRM];

impl Operator {
    /// Kills the payload or the shim, stops the shim by a signal for a while, or asks it to stop.
    /// Returns the reply if it also stopped the box through the runtime.
    pub(super) async fn signal_processes(
        &mut self,
        view: &View,
        pause: Duration,
    ) -> Option<(Reply, u64)> {
        match self.rng.u8(..8) {
            0..3 => _ = self.kill_payload(view),
            3..6 => _ = self.kill_shim(view),
            6 => {
                let cause = |run: &mut Run| run.stop(false);
                self.signal(view.pid, Signal::SIGTERM, cause);
            }
            _ => return self.freeze_shim(view, pause).await,
        }
        None
    }

    pub(super) fn kill_payload(&mut self, view: &View) -> bool {
        let signal = SIGNALS[self.rng.usize(..SIGNALS.len())];
        let cause = |run: &mut Run| run.signals.push(signal.as_raw());
        self.signal(view.payload_pid, signal, cause).is_some()
    }

    pub(super) fn kill_shim(&self, view: &View) -> bool {
        let cause = |run: &mut Run| run.shim_killed = true;
        self.signal(view.pid, Signal::SIGKILL, cause).is_some()
    }

    /// Stops the shim by a signal, and continues it after a pause or a stop of the box.
    async fn freeze_shim(&mut self, view: &View, pause: Duration) -> Option<(Reply, u64)> {
        // Any runtime that ends the box has to kill the shim.
        let cause = |run: &mut Run| run.shim_killed = true;
        let shim = self.signal(view.pid, Signal::SIGSTOP, cause)?;
        let reply = if self.rng.bool() {
            sleep(pause).await;
            None
        } else {
            Some(self.stop_within(pause).await)
        };
        let _ = shim.send_signal(Signal::SIGCONT);
        reply
    }

    /// Signals a process of this box. If another process has the pid by now, it gets no signal.
    fn signal(
        &self,
        pid: Option<u32>,
        signal: Signal,
        cause: impl FnOnce(&mut Run),
    ) -> Option<Pidfd> {
        let pid = pid?;
        let process = Pidfd::open(pid).ok()?;
        let mut marks = self.ids.last().into_iter().chain([&self.account.name]);
        if !marks.any(|mark| leftovers::mentions(pid, mark)) {
            return None;
        }
        self.account.with_run(cause);
        let sent = process.send_signal(signal);
        self.account.note(format!("{signal} to {pid}: {sent:?}"));
        sent.ok().map(|()| process)
    }
}
