use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are meant for the box.
#[derive(Debug)]
pub(super) struct Interrupts([Signal; 2]);

impl Interrupts {
    pub(super) fn catch() -> io::Result<Self> {
        let caught = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        let [interrupt, terminate] = caught;
        Ok(Self([interrupt?, terminate?]))
    }

    pub(super) async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}
