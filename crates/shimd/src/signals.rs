//! The signals that ask a command to end.

use std::fs;
use std::future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Sighup,
}

impl StopSignals {
    /// Replaces the default action of the signals.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: Sighup::catch()?,
        })
    }

    /// Waits for the next signal. SIGHUP is returned at most once, see [`Sighup`].
    pub(crate) async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            () = self.hang_up.next() => SignalKind::hangup(),
        }
    }

    /// Waits for the next SIGINT or SIGTERM.
    pub(crate) async fn next_forced(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }
}

/// SIGHUP: the terminal of the process has closed.
#[derive(Debug)]
struct Sighup(Option<Signal>);

impl Sighup {
    /// Replaces the default action of SIGHUP, unless the signal is ignored, as under `nohup`.
    fn catch() -> io::Result<Self> {
        let hang_up = SignalKind::hangup();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if is_ignored(&status, hang_up.as_raw_value()) {
            Ok(Self(None))
        } else {
            signal(hang_up).map(|signal| Self(Some(signal)))
        }
    }

    /// Waits for the signal, at most once: a terminal that closes may send it twice, and the second
    /// one does not ask for a faster end.
    async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
                self.0 = None;
            }
            None => future::pending().await,
        }
    }
}

/// Returns whether a process ignores `signal`, according to its `/proc/PID/status`, proc(5).
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\tshimd\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!(
            [1, 2, 13].map(|signal| is_ignored(status, signal)),
            [true, false, true]
        );
        assert!(!is_ignored("", 1));
    }
}
