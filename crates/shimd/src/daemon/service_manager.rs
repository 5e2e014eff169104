//! The service manager, if there is one: the sockets that it passes (`sd_listen_fds(3)`), and the
//! state that the daemon reports to it (`sd_notify(3)`).

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use vmm_rest::{BearerToken, ListenError, Listener};
use vmm_runtime::VmmRuntime;

use crate::failure::Failure;

/// The environment variables that are for the daemon alone, not for its shims.
pub(super) const PRIVATE_VARIABLES: [&str; 7] = [
    "CREDENTIALS_DIRECTORY",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The sockets that the service manager has bound for the daemon.
#[derive(Debug, Default)]
pub(super) struct InheritedSockets {
    unix: Vec<UnixListener>,
    tcp: Vec<TcpListener>,
}

impl InheritedSockets {
    /// Takes the sockets, and removes their variables from the environment. Must be called while
    /// the process has one thread.
    pub(super) fn take() -> Result<Self, Failure> {
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_unix_listener(index) {
                inherited.unix.push(listener);
            } else if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
                inherited.tcp.push(listener);
            } else {
                return Err(Failure::NotAStreamSocket { index });
            }
        }
        Ok(inherited)
    }

    /// Returns true if one of the sockets replaces the socket in the home.
    pub(super) fn has_unix(&self) -> bool {
        !self.unix.is_empty()
    }

    /// Returns a listener for each socket. TCP listeners require the token.
    pub(super) fn into_listeners(
        self,
        token: Option<&BearerToken>,
    ) -> impl Iterator<Item = Result<Listener, ListenError>> {
        let unix = self.unix.into_iter().map(Listener::from_unix);
        let tcp = self.tcp.into_iter();
        unix.chain(tcp.map(move |listener| Listener::from_tcp(listener, token.cloned())))
    }
}

/// Reports that the daemon is ready.
pub(super) fn notify_ready() {
    notify(NotifyState::Ready);
}

/// Reports that the daemon is shutting down.
pub(super) fn notify_stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Feeds the watchdog of the service manager while the reaper sweeps, which it does even when it
/// has no work. The service manager restarts a daemon that stops feeding the watchdog.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    sweeps: u64,
}

impl Watchdog {
    /// Feeds the watchdog twice per `timeout`, forever.
    pub(super) async fn run(mut self, runtime: VmmRuntime, timeout: Duration) {
        // tokio panics on an interval of zero.
        let period = (timeout / 2).max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.has_swept(runtime.metrics().await.shim_reaper_sweeps) {
                notify(NotifyState::Watchdog);
            } else {
                tracing::error!("the reaper does not sweep: the watchdog is not fed");
            }
        }
    }

    /// Returns true if there was a sweep since the last call.
    fn has_swept(&mut self, sweeps: u64) -> bool {
        sweeps > std::mem::replace(&mut self.sweeps, sweeps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchdog_is_fed_only_after_new_sweeps() {
        let mut watchdog = Watchdog::default();
        let fed = [0, 1, 1, 1, 3, 4].map(|sweeps| watchdog.has_swept(sweeps));
        assert_eq!(fed, [false, true, false, false, true, true]);
    }
}
