use std::io;
use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::hang_up::HangUp;

/// SIGTERM and SIGINT: the first one ends the daemon in order, a second one at once. The end of the
/// terminal that it was started in counts as a first one.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: HangUp,
}

impl Signals {
    /// From now on they do nothing else.
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: HangUp::catch()?,
        })
    }

    /// Never returns.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let name = tokio::select! {
            () = self.hang_up.next() => "SIGHUP",
            (name, _) = next(&mut self.terminate, &mut self.interrupt) => name,
        };
        tracing::info!("{name}: shutting down; SIGTERM or SIGINT now end the daemon at once");
        shutdown.cancel();
        let (name, number) = next(&mut self.terminate, &mut self.interrupt).await;
        tracing::warn!("{name}: attached boxes are let go, and end by themselves");
        process::exit(128 + number);
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}
