use std::fs;
use std::future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The end of the terminal that this was started in: SIGHUP.
#[derive(Debug)]
pub(crate) struct HangUp(Option<Signal>);

impl HangUp {
    /// From now on it does nothing else; unless it has been told to be ignored, as by `nohup`.
    pub(crate) fn catch() -> io::Result<Self> {
        let hang_up = SignalKind::hangup();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Ok(Self(match ignores(&status, hang_up.as_raw_value()) {
            true => None,
            false => Some(signal(hang_up)?),
        }))
    }

    /// Once: a terminal that goes away may send it twice, and be no more in a hurry for that.
    pub(crate) async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
                self.0 = None;
            }
            None => future::pending().await,
        }
    }
}

/// By what `proc(5)` says in the `status` of a process.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_found_in_the_mask() {
        let status = "Name:\tshimd\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!(
            [1, 2, 13].map(|signal| ignores(status, signal)),
            [true, false, true]
        );
        assert!(!ignores("", 1));
    }
}
