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

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = self.hang_up.next() => {}
        }
    }
}
