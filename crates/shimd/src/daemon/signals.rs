use std::process;

use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use crate::signals::StopSignals;

/// Handles the signals of the daemon, forever. The first SIGTERM, SIGINT or SIGHUP shuts it down in
/// order; the second SIGTERM or SIGINT ends it immediately.
pub(super) async fn handle_signals(mut signals: StopSignals, shutdown: CancellationToken) {
    let first = signals.next().await;
    tracing::info!(
        "{}: shutting down; send SIGTERM or SIGINT again to end the daemon immediately",
        name_of(first)
    );
    shutdown.cancel();
    let second = signals.next_forced().await;
    tracing::warn!(
        "{}: ending immediately; the shims stop their attached boxes",
        name_of(second)
    );
    process::exit(128 + second.as_raw_value());
}

fn name_of(signal: SignalKind) -> &'static str {
    if signal == SignalKind::hangup() {
        "SIGHUP"
    } else if signal == SignalKind::interrupt() {
        "SIGINT"
    } else {
        "SIGTERM"
    }
}
