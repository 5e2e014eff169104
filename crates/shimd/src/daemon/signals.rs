use std::io;
use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::service_manager;

/// SIGTERM and SIGINT: the first one ends the daemon in order, a second one at once.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they do nothing else.
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Never returns.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let (name, _) = self.next().await;
        tracing::info!("{name}: shutting down; another one ends the daemon at once");
        service_manager::stopping();
        shutdown.cancel();
        let (name, number) = self.next().await;
        tracing::warn!("{name} again: attached boxes are let go, and end by themselves");
        process::exit(128 + number);
    }

    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
        }
    }
}
