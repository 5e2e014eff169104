use std::io;

use futures::future::select_all;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Somebody's wish, from outside, that it ends.
#[derive(Debug)]
pub(super) struct Ends(Vec<Signal>);

const SIGNALS: [SignalKind; 4] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
];

impl Ends {
    /// From now on they do nothing else.
    pub(super) fn catch() -> io::Result<Self> {
        SIGNALS
            .into_iter()
            .map(signal)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    pub(super) async fn next(&mut self) {
        let signals = self.0.iter_mut();
        select_all(signals.map(|signal| Box::pin(signal.recv()))).await;
    }
}
