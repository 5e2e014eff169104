use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::hang_up::HangUp;

/// The signals that are meant for the box.
#[derive(Debug)]
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: HangUp,
}

impl Interrupts {
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: HangUp::catch()?,
        })
    }

    /// The number of the signal.
    pub(super) async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            () = self.hang_up.next() => SignalKind::hangup(),
        };
        kind.as_raw_value()
    }
}
